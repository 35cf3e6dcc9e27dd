"""Files out of Debian packages of one version, which the tasks are made from.

A package is fetched once with `apt-get download` into the user's cache folder, or given as a file; its hash is checked
before anything in it is read. Nothing is installed or unpacked to the disk.
"""

import hashlib
import io
import lzma
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from regard.errors import DataError

_HEAD = 60  # bytes before each member of an ar archive
_TARS = ("data.tar", "data.tar.gz", "data.tar.xz")  # zstd is not in Python's library before 3.14, and not needed


class Package(NamedTuple):
    """One version of a package, by the SHA-256 of its .deb."""

    name: str
    version: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.name}={self.version}"

    def files(self, wanted: Callable[[str], bool], deb: Path | None = None) -> dict[str, bytes]:
        """The content of the files whose paths ("./usr/share/...") are wanted, by path, in the package's order.

        deb: the .deb, fetched where there is none. Raises DataError.
        """
        blob = self.checked(_read(deb) if deb else _read(self.fetched()))
        try:
            with tarfile.open(fileobj=_data(self, blob), mode="r|*") as tar:
                return {
                    member.name: content.read()
                    for member in tar
                    if member.isfile() and wanted(member.name) and (content := tar.extractfile(member)) is not None
                }
        except (tarfile.TarError, lzma.LZMAError, EOFError, OSError) as error:
            raise DataError(f"{self} cannot be unpacked: {error or 'it ends too early'}") from error

    def checked(self, blob: bytes) -> bytes:
        """The same bytes, if they are this package's."""
        got = hashlib.sha256(blob).hexdigest()
        if got != self.sha256:
            raise DataError(f"{self} has the SHA-256 {got[:16]}..., expected {self.sha256[:16]}...: get that version")
        return blob

    def fetched(self) -> Path:
        """The package in the user's cache folder, downloaded by apt-get if it is not there."""
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "regard"
        target = folder / f"{self.name}-{self.sha256[:16]}.deb"
        if target.exists():
            return target
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as place:
            try:
                subprocess.run(["apt-get", "download", "-qq", str(self)], cwd=place, check=True, capture_output=True)
            except (OSError, subprocess.CalledProcessError) as error:
                raise DataError(
                    f"apt-get cannot download {self}: on Debian 12 run apt-get update; elsewhere give the .deb yourself"
                ) from error
            next(Path(place).glob("*.deb")).replace(target)
        return target

    def within(self, folder: Path | None) -> Path | None:
        """The .deb in a folder that a user gives, under the name that Debian's servers give it."""
        if folder is None:
            return None
        found = sorted(folder.glob(f"{self.name}_*.deb"))
        if not found:
            raise DataError(f"{str(folder)!r} has no {self.name}_*.deb: put {self} there")
        return found[0]


def _read(deb: Path) -> bytes:
    try:
        return deb.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {str(deb)!r}: {error.strerror or error}") from error


def _data(package: Package, archive: bytes) -> io.BytesIO:
    """The tar with the files, as it is packed in the ar archive that a .deb is."""
    at = 8
    while archive[:8] == b"!<arch>\n" and at + _HEAD <= len(archive):
        name, size = archive[at : at + 16].decode("ascii", "replace").strip().rstrip("/"), archive[at + 48 : at + 58]
        end = at + _HEAD + (int(size) if size.strip().isdigit() else len(archive))
        if name in _TARS and end <= len(archive):
            return io.BytesIO(archive[at + _HEAD : end])
        at = end + end % 2
    raise DataError(f"{package} is not a whole package: expected {', '.join(_TARS[:-1])} or {_TARS[-1]} in it")
