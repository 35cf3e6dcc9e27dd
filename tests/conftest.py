"""Shapes in signatures are checked at run time here, and only here."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from jaxtyping import config, install_import_hook

if "PYTEST_XDIST_WORKER" in os.environ:  # one of two processes
    os.environ.setdefault("OMP_NUM_THREADS", "1")

SPEC = find_spec("regard")
assert SPEC is not None
assert SPEC.origin is not None
# not the allocators' base class, which answers for wrong types itself
ALLOCATORS = [f"allocate.{file.stem}" for file in (Path(SPEC.origin).parent / "allocate").glob("[a-z]*.py")]
CHECKED = ["attention", "relevance", "tokens", "reading", "anchors", "allocation", "eyes", *ALLOCATORS]
hook = install_import_hook([f"regard.{name}" for name in CHECKED], "beartype.beartype")


@pytest.fixture
def unchecked():
    """Wrong types get as far as they do for a user."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture
def compiler(unchecked):
    """Of torch, with nothing compiled yet: it compiles one function a few times only, and what checks shapes is one."""
    import torch

    torch._dynamo.reset()


@pytest.fixture(scope="session")
def vlm_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("vlms")


@pytest.fixture(scope="session")
def models(vlm_folder):
    """Each family's model, saved, and loaded once for each kernel."""
    import tiny_vlms  # it imports transformers, which most tests do without

    loaded = {}

    def get(name: str, kernel: str = "sdpa"):
        kernel = "eager" if name == "paligemma2" else kernel  # Gemma 2 has no other
        if (name, kernel) not in loaded:
            path = vlm_folder / name
            if not path.exists():
                tiny_vlms.build(name, vlm_folder)
            loaded[name, kernel] = tiny_vlms.load(path, attn_implementation=kernel)
        return loaded[name, kernel]

    return get


@pytest.fixture
def regard(monkeypatch, capsys, tmp_path):
    """Run the command line in an empty folder: exit code, stdout, stderr."""
    from regard import cli

    monkeypatch.chdir(tmp_path)

    def run(*line: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["regard", *map(str, line)])
        with pytest.raises(SystemExit) as exited:
            cli.main()
            raise SystemExit(0)
        out = capsys.readouterr()
        return int(exited.value.code or 0), out.out, out.err

    return run


@pytest.fixture(scope="module")
def browser():
    """Chromium, without a window; tests that need it are skipped where there is none."""
    from regard.bench.browser import chromium
    from regard.errors import DataError

    try:
        opened = chromium()
        found = opened.__enter__()
    except DataError as missing:
        pytest.skip(str(missing))
    yield found
    opened.__exit__(None, None, None)
