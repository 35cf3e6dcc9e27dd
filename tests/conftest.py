"""Shapes in signatures are checked at run time here, and only here."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from jaxtyping import config, install_import_hook

SPEC = find_spec("regard")
assert SPEC is not None
assert SPEC.origin is not None
# not the allocators' base class, which answers for wrong types itself
ALLOCATORS = [f"allocate.{file.stem}" for file in (Path(SPEC.origin).parent / "allocate").glob("[a-z]*.py")]
CHECKED = ["tokens", "reading", "anchors", "allocation", "eyes", *ALLOCATORS]
hook = install_import_hook([f"regard.{name}" for name in CHECKED], "beartype.beartype")


@pytest.fixture
def unchecked():
    """Wrong types get as far as they do for a user."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
