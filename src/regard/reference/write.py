"""The pages written, or compared."""

from pathlib import Path

from regard.bench.readme import written
from regard.reference import api, commands

COMMAND = "python -m regard.reference"


def pages() -> dict[Path, str]:
    """Every generated page by its path from the root of a checkout."""
    return {**api.pages(), commands.PLACE: commands.page()}


def main() -> None:
    """From the root of a checkout."""
    for path, text in pages().items():
        written(path, text, COMMAND, "the code")
