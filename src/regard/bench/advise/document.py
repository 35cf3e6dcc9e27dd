"""The scenarios of docs/advise.md, worked through: `python -m regard.bench.advise` writes them, `--check` compares.

A block `<!-- advise: OPTIONS --> ... <!-- end -->` becomes what `regard advise OPTIONS` prints, and its code.
"""

import io
import re
import shlex
from pathlib import Path

from rich.console import Console

from regard.bench.advise.advice import Advice, advise
from regard.bench.advise.asked import Asked, seconds, size
from regard.bench.advise.show import show
from regard.bench.advise.sources import Results
from regard.errors import DataError

DOCUMENT = Path("docs/advise.md")
_BLOCK = re.compile(r"(<!-- advise: ([^\n]*?) -->\n).*?(<!-- end -->)", re.DOTALL)
_READ = {"latency": seconds, "memory": size, "resolution": int, "batch": int}


def generated(text: str, results: Results) -> str:
    """The text with each block filled from results. Raises DataError for options that cannot be."""
    return _BLOCK.sub(lambda found: found[1] + _block(found[2], results) + found[3], text)


def asked(options: str) -> Asked:
    """What a line of options asks. Raises DataError."""
    words = shlex.split(options)
    if len(words) % 2 or not all(name.startswith("--") for name in words[::2]):
        raise DataError(f"expected --option value ..., got {options!r}")
    given = {name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2], strict=True)}
    return Asked(**{name: _READ.get(name, str)(value) for name, value in given.items()})


def _block(options: str, results: Results) -> str:
    advice = advise(asked(options), results)
    return f"```console\n$ regard advise {options}\n{_printed(advice)}```\n\n```python\n{advice.code}```\n"


def _printed(advice: Advice) -> str:
    stream = io.StringIO()
    show(advice, Console(file=stream, width=118, color_system=None, force_terminal=False), code=False)
    return "".join(f"{line.rstrip()}\n" for line in stream.getvalue().splitlines())
