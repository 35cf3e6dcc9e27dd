"""Writing files so that nothing half-written is ever seen: to a temporary file beside the target, then renamed."""

import os
import tempfile
from pathlib import Path

from regard.errors import DataError


def write_whole(path: str | os.PathLike, content: str | bytes) -> None:
    """Write a file, all of it or none. Raises DataError where the folder or the disk does not allow it."""
    target = Path(path)
    data = content.encode() if isinstance(content, str) else content
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(target)
    except OSError as error:
        raise DataError(f"cannot write {str(target)!r}: {error.strerror or error}: choose another place") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
