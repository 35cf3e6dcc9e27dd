"""Fill docs/advise.md from results/ of the current folder, or with --check fail where they differ."""

from pathlib import Path

from regard.bench.advise.document import DOCUMENT, generated
from regard.bench.advise.sources import Results
from regard.bench.readme import written

if __name__ == "__main__":
    fresh = generated(DOCUMENT.read_text("utf-8"), Results(Path("results")))
    written(DOCUMENT, fresh, "python -m regard.bench.advise")
