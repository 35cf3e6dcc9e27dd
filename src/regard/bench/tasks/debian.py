"""Files out of Debian packages of one version, which the tasks are made from.

A package is fetched once with `apt-get download` into the user's cache folder, or given as a file; its hash is checked
before anything in it is read. Nothing is installed or unpacked to the disk.
"""

import io
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from regard.bench.tasks.fetching import Told, checked, kept
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

    def files(
        self, wanted: Callable[[str], bool], deb: Path | None = None, told: Told | None = None
    ) -> dict[str, bytes]:
        """The content of the files whose paths ("./usr/share/...") are wanted, by path, in the package's order.

        deb: the .deb, fetched where there is none. told: given a line before it is fetched. Raises DataError.
        """
        blob = checked(str(self), self.sha256, deb or self.fetched(told))
        try:
            with tarfile.open(fileobj=_data(self, blob), mode="r|*") as tar:
                return {
                    member.name: content.read()
                    for member in tar
                    if member.isfile() and wanted(member.name) and (content := tar.extractfile(member)) is not None
                }
        except (tarfile.TarError, lzma.LZMAError, EOFError, OSError) as error:
            raise DataError(f"{self} cannot be unpacked: {error or 'it ends too early'}") from error

    def fetched(self, told: Told | None = None) -> Path:
        """The package in the user's cache folder, downloaded by apt-get if it is not there. Raises DataError."""
        return kept(
            str(self),
            f"{self.name}-{self.sha256[:16]}.deb",
            self.sha256,
            ["apt-get", "download", "-qq", str(self)],
            f"apt-get cannot download {self}: on Debian 12 run apt-get update; elsewhere give the .deb yourself",
            told,
        )

    def within(self, folder: Path | None) -> Path | None:
        """The .deb in a folder that a user gives, under the name that Debian's servers give it."""
        if folder is None:
            return None
        found = sorted(folder.glob(f"{self.name}_*.deb"))
        if not found:
            raise DataError(f"{str(folder)!r} has no {self.name}_*.deb: put {self} there")
        return found[0]


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
