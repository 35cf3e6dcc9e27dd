"""Write docs/claims.md, or with --check fail where it differs from what rows and results say."""

import sys

from regard.bench.claims.document import PLACE, generated
from regard.files import write_whole


def main() -> None:
    """From the root of a checkout."""
    text = generated()
    if "--check" in sys.argv:
        if not PLACE.exists() or PLACE.read_text(encoding="utf-8") != text:
            raise SystemExit(f"{PLACE} differs from the claims: run python -m regard.bench.claims")
        return
    write_whole(PLACE, text)


if __name__ == "__main__":
    main()
