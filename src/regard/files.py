"""Writing files so that nothing half-written is ever seen: to temporary files beside the targets, then renamed."""

import errno
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from regard.errors import DataError


def write_whole(path: str | os.PathLike, content: str | bytes) -> None:
    """Write a file, all of it or none. Raises DataError where the folder or the disk does not allow it."""
    target = Path(path)
    write_all(target.parent, {target.name: content})


def write_all(folder: str | os.PathLike, contents: Mapping[str, str | bytes]) -> None:
    """Write some files of one folder, made if need be: the first is renamed when the last is on the disk.

    Raises DataError where the folder or the disk does not allow it; the files that were there are then as they were.
    """
    place = Path(folder)
    ready: list[tuple[Path, Path]] = []
    try:
        place.mkdir(parents=True, exist_ok=True)
        for name in contents:
            if (place / name).is_dir():
                raise IsADirectoryError(errno.EISDIR, f"{name} is a folder there")
        for name, content in contents.items():
            handle, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=place)
            ready.append((Path(temporary), place / name))
            with os.fdopen(handle, "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(0o666 & ~_umask())
        for temporary, target in ready:
            temporary.replace(target)
    except OSError as error:
        raise DataError(f"cannot write to {str(place)!r}: {error.strerror or error}: choose another place") from error
    finally:
        for temporary, _ in ready:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
