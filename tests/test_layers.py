"""Imports point one way, and what must stay light stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import regard

HOUSE = Path(regard.__file__).parent
# each room may import from the rooms before it
ORDER = [
    {"errors"},
    {"amount", "intervals"},
    {"pixels"},
    {"cost", "images", "files"},
    {"tokens"},
    {"reading", "anchors"},
    {"allocation", "trace"},
    {"record"},
    {"places"},
    {"attention"},
    {"relevance"},
    {"allocate"},
    {"recorded"},
    {"eyes"},
    {"mechanisms"},
    {"vlm"},
    {"doctor", "train"},
    {"bench"},
    {"looking", "tiling"},
    {"report"},
    {"app", "contract"},
    {"cli"},
    {"testing"},
    {"reference"},
]
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
REPORT_SEES = {"errors", "record", "trace", "allocation", "tokens", "report"}


def imports(tree: ast.AST) -> set[str]:
    """The modules of regard that a file imports anywhere but under TYPE_CHECKING."""
    found, nodes = set(), [tree]
    while nodes:
        node = nodes.pop()
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in found if name.startswith("regard.")} & set(LEVEL)


@pytest.mark.parametrize("file", sorted(HOUSE.rglob("*.py")), ids=lambda f: str(f.relative_to(HOUSE)))
def test_imports_point_one_way(file: Path):
    room = file.relative_to(HOUSE).parts[0].removesuffix(".py")
    if room == "__init__":
        return
    assert room in LEVEL, f"{room} has no place in the order"
    for other in imports(ast.parse(file.read_text())) - {room}:
        assert LEVEL[other] < LEVEL[room], f"{room} imports {other}"
        if room == "report":
            assert other in REPORT_SEES, f"report imports {other}"


def test_the_check_can_fail():
    assert imports(ast.parse("from regard.cli import app")) == {"cli"}
    assert imports(ast.parse("from regard import cli")) == {"cli"}
    assert imports(ast.parse("if TYPE_CHECKING:\n    from regard.cli import app")) == set()


def loaded_after(code: str) -> set[str]:
    out = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"], capture_output=True, text=True
    )
    assert out.returncode == 0, out.stderr
    return set(out.stdout.split())


def test_import_regard_is_light():
    heavy = {"torch", "transformers", "matplotlib", "gradio", "numpy", "PIL", "rich", "typer"}
    assert not heavy & loaded_after("import regard")
    assert "torch" in loaded_after("import regard; regard.Allocation")


def test_help_does_not_import_torch():
    code = (
        "import sys; sys.argv = ['regard', '--help']\nfrom regard.cli import main\ntry: main()\nexcept SystemExit: pass"
    )
    assert not {"torch", "numpy", "PIL"} & loaded_after(code)


def test_public_names_exist_and_are_documented():
    for name in regard.__all__:
        assert getattr(regard, name).__doc__, name
    assert callable(regard.look)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = regard.nothing  # pyright: ignore[reportAttributeAccessIssue]
