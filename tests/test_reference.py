"""docs/api and docs/commands.md are what the code says, and every public name stands there with a docstring."""

import ast
import importlib
import inspect
import re
import types
from pathlib import Path

import pytest

import regard as package
from regard.reference import api, commands, write
from regard.reference.source import HOUSE, Defined, find, public

ROOT = Path(__file__).parent.parent
HOMES = {package: "", **{importlib.import_module(f"regard.{name}"): name for name in ("doctor", "cost", "testing")}}


MADE = write.pages()


@pytest.mark.parametrize("page", MADE, ids=str)
def test_the_pages_are_what_the_code_says(page):
    assert (ROOT / page).read_text() == MADE[page], f"run {write.COMMAND}"


def test_no_page_is_left_over():
    assert {file.relative_to(ROOT) for file in (ROOT / "docs" / "api").iterdir()} == set(MADE) - {commands.PLACE}


@pytest.mark.parametrize("page", api.PAGES)
def test_every_public_name_has_a_docstring(page):
    for module, entries in api.names(page).items():
        for name, found in entries.items():
            assert found.docstring, f"regard.{module}: {name}"
            for member in found.members():
                assert found.said(member), f"regard.{module}: {name}.{member.name}"


@pytest.mark.parametrize("home", HOMES, ids=lambda home: home.__name__)
def test_every_exported_name_is_there(home):
    """By importing, which the pages do without."""
    every = [getattr(home, name) for name in home.__all__]
    things = [one for one in every if inspect.isclass(one) or isinstance(one, types.FunctionType)]
    assert len(things) > 0
    shown = {(f"regard.{d.module}".rstrip("."), d.name) for page in api.PAGES for d in everything(page)}
    for one in things:
        assert (one.__module__, one.__name__) in shown, one


def everything(page: str) -> list[Defined]:
    return [found for entries in api.names(page).values() for found in entries.values()]


@pytest.mark.parametrize("room", ["attention", "allocate", "mechanisms", "relevance", "vlm/bridges", "vlm/fusion"])
def test_a_new_file_of_these_rooms_is_found(room):
    files = [file for file in (HOUSE / room).glob("*.py") if not file.name.startswith("_")]
    shown = {module for _, modules in api.PAGES.values() for module in modules}
    assert {f"{room.replace('/', '.')}.{file.stem}" for file in files} <= shown


def used(text: str) -> set[tuple[str, str]]:
    """What the Python blocks of a document import from regard."""
    found = set()
    for block in re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "regard":
                found |= {((node.module or "").removeprefix("regard").lstrip("."), one.name) for one in node.names}
    return found


PAGES = sorted(file for file in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/*.md")])


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)
def test_what_the_documents_import_is_public(file):
    modules = {module for _, modules in api.PAGES.values() for module in modules}
    for module, name in used(file.read_text()):
        inner = f"{module}.{name}".lstrip(".")
        if inner in modules:
            continue
        assert module in modules, f"regard.{module} is on no page"
        assert name in public(module) or name.isupper(), f"regard.{module}.{name}"


def test_signatures_are_those_that_python_sees():
    """Names and order of the parameters of a dozen, by `inspect`."""
    from regard.attention.cross import CrossAttention
    from regard.cost.language import LanguageModel
    from regard.doctor import capture
    from regard.record import Record
    from regard.train.settings import Recipe
    from regard.vlm.bridges.qformer import QueryBridge
    from regard.vlm.bridges.recurrent import RecurrentBridge
    from regard.vlm.shorten import shorten

    for one in (CrossAttention, capture, LanguageModel, Record, Recipe, QueryBridge, RecurrentBridge, shorten):
        found = find(one.__module__.removeprefix("regard."), one.__name__)
        assert found is not None
        text = api.signature(found).removeprefix("class ").removeprefix("def ").split("  # a ")[0].split(" -> ")[0]
        shown = ast.parse(f"def {text}: ...").body[0]
        assert isinstance(shown, ast.FunctionDef)
        args = shown.args
        names = [arg.arg for arg in [*args.posonlyargs, *args.args, *args.kwonlyargs]]
        every = inspect.signature(one).parameters.values()
        assert names == [p.name for p in every if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)], one
        known = {name: value for name, value in zip(names, every, strict=False) if value.default is not value.empty}
        assert len(args.defaults) + sum(one is not None for one in args.kw_defaults) == len(known)


def test_a_docstring_as_markdown():
    said = api.markdown("Sizes <= 3 of `a<b>`.\n\n    y = W x * 2\n\nMore. Raises ShapeError for x.\nRaises at once.")
    assert "Sizes \\<= 3 of `a<b>`." in said
    assert "\n    y = W x * 2\n" in said
    assert "More.\n\n**Raises** ShapeError" in said
    assert said.count("**Raises**") == 2


def test_every_command_and_option_is_known(regard, monkeypatch):
    """What `--help` prints of each command, the page has too."""
    monkeypatch.setenv("COLUMNS", "200")
    found = commands.commands()
    code, out, _ = regard("--help")
    assert code == 0
    listed = re.findall(r"^│ (\w[\w-]*) ", out.partition("Commands")[2], re.MULTILINE)
    assert len(listed) > 10
    assert {name.split()[0] for name in found} == set(listed)
    for words, command in found.items():
        code, out, _ = regard(*words.split(), "--help")
        options = set(re.findall(r"^│ \*?\s*(--[\w-]+)", out, re.MULTILINE)) - {"--help"}
        first = {one.names[0] for one in command.parameters if one.is_option}
        assert options == first, words


def test_check_says_what_differs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["reference"])
    write.main()
    write_again = tmp_path / "docs" / "commands.md"
    write_again.write_text("stale")
    monkeypatch.setattr("sys.argv", ["reference", "--check"])
    with pytest.raises(SystemExit, match=r"commands.md differs from the code: run python -m regard.reference"):
        write.main()
