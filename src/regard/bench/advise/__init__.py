"""What to use, computed from the committed measurements and the cost model: `regard advise`.

advise(Asked(1344, "detail", "cpu", latency=2.0)): rankings, one a test, what leads, why, what would change it, and the
code to start with. Nothing here says that anything is good: with other results it says otherwise.
"""

from regard.bench.advise.advice import Advice, advise
from regard.bench.advise.asked import Asked, seconds, size
from regard.bench.advise.sources import Results, folder

__all__ = ["Advice", "Asked", "Results", "advise", "folder", "seconds", "size"]
