"""Fill docs/advise.md from results/ of the current folder, or with --check fail where they differ."""

import sys
from pathlib import Path

from regard.bench.advise.document import DOCUMENT, generated
from regard.bench.advise.sources import Results
from regard.files import write_whole


def main() -> None:
    """Of the checkout that is the current folder."""
    text = DOCUMENT.read_text("utf-8")
    fresh = generated(text, Results(Path("results")))
    if "--check" in sys.argv and fresh != text:
        raise SystemExit(f"{DOCUMENT} differs from results/: run python -m regard.bench.advise")
    if "--check" not in sys.argv:
        write_whole(DOCUMENT, fresh)


if __name__ == "__main__":
    main()
