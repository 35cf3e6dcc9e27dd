"""Writing files so that nothing half-written is ever seen: to temporary files beside the targets, then renamed."""

import errno
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
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


@contextmanager
def locked(path: str | os.PathLike, wait: bool = False) -> Iterator[None]:
    """Hold a file for this process alone; the lock goes with the process, however that ends.

    wait: until another lets go. Raises DataError where another holds it, and where it cannot be written.
    """
    import fcntl  # which Windows has not, where all else of this file works

    place = Path(path)
    where = str(place.parent)
    with ExitStack() as stack:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            handle = stack.enter_context(place.open("a+"))
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            handle.truncate(0)
            handle.write(str(os.getpid()))
            handle.flush()
        except BlockingIOError as error:
            owner = place.read_text().strip() or "unknown"
            at_work = f"another run (process {owner}) is at work in {where!r}"
            raise DataError(f"{at_work}: wait, or choose another folder") from error
        except OSError as error:
            raise DataError(f"cannot write to {where!r}: {error.strerror or error}: choose another place") from error
        yield


def sweep(folder: str | os.PathLike, names: Iterable[str]) -> None:
    """Remove what a process that was killed while it wrote files of these names has left: nothing else writes them."""
    for name in names:
        for left in Path(folder).glob(f".{name}.????????"):
            left.unlink(missing_ok=True)


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
