"""Write docs/claims.md, or with --check fail where it differs from what rows and results say."""

from regard.bench.claims.document import PLACE, generated
from regard.bench.readme import written


def main() -> None:
    """From the root of a checkout."""
    written(PLACE, generated(), "python -m regard.bench.claims")


if __name__ == "__main__":
    main()
