"""Files that others publish, fetched once into the user's cache folder and known by their hash."""

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from regard.errors import DataError

LONGEST = 1800.0  # seconds that fetching may take
Told = Callable[[str], object]


def cache_folder() -> Path:
    """Where what is fetched is kept: $XDG_CACHE_HOME/regard, or ~/.cache/regard."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "regard"


def kept(what: str, name: str, sha256: str, command: Sequence[str], refusal: str, told: Told | None = None) -> Path:
    """The file of this name in the cache folder; where there is none, a command puts it, alone, into its own folder.

    what: its name for a person. refusal: what is said when the command cannot do it. told: given one line before
    anything is fetched. Raises DataError; a file with another hash is not kept.
    """
    folder = cache_folder()
    target = folder / name
    if target.exists():
        return target
    if told is not None:
        told(f"fetching {what} into {folder}, once")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as place:
            got = _fetched(command, Path(place), refusal)
            wrong = _difference(what, sha256, got.read_bytes())
            if wrong:
                raise DataError(f"{wrong}: get that version")
            got.replace(target)
    except OSError as error:
        raise DataError(f"cannot write to {str(folder)!r}: {error.strerror}: set XDG_CACHE_HOME") from error
    return target


def _fetched(command: Sequence[str], place: Path, refusal: str) -> Path:
    """The file that the command puts into its folder."""
    try:
        subprocess.run(command, cwd=place, check=True, capture_output=True, text=True, timeout=LONGEST)
    except subprocess.CalledProcessError as error:
        said = [line.strip() for line in (error.stderr or "").splitlines() if line.strip()]
        raise DataError(f"{refusal} ({said[-1][:200]})" if said else refusal) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DataError(refusal) from error
    got = next(place.iterdir(), None)
    if got is None:
        raise DataError(refusal)
    return got


def checked(what: str, sha256: str, path: Path) -> bytes:
    """The bytes of a file, if they have this SHA-256. Raises DataError."""
    blob = read(path)
    wrong = _difference(what, sha256, blob)
    if wrong:
        raise DataError(f"{wrong}: get that version, and remove {str(path)!r}")
    return blob


def _difference(what: str, sha256: str, blob: bytes) -> str:
    """What is wrong with bytes that have another SHA-256, or nothing."""
    got = hashlib.sha256(blob).hexdigest()
    return "" if got == sha256 else f"{what} has the SHA-256 {got[:16]}..., expected {sha256[:16]}..."


def read(path: Path) -> bytes:
    """The bytes of a file. Raises DataError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
