"""Every block of code of every page runs, and every command line in them can be given."""

import re
import shlex
import tomllib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import skimage.data
import typer
from PIL import Image

import tiny_processors
import tiny_towers
from documents import FILES, NAMES, ROOT, blocks, indented

# whose blocks another test runs, from top to bottom
ELSEWHERE = {
    "README.md": "test_readme.py",
    "docs/add-a-family.md": "test_families.py",
    "docs/advise.md": "test_advise_document.py",
    "docs/allocators.md": "test_readme.py",
    "docs/debug.md": "test_capture_docs.py",
    "docs/doctor.md": "test_doctor_docs.py",
    "docs/train.md": "test_train_vlm_docs.py",
}
SHELLS = ("sh", "bash", "console")
SHOWN = ("toml", "yaml", "", "text", "json")  # what is not run
# what takes a network, long, or what a run of one's own has made
NOT_HERE = re.compile(r"--model|^regard (train|show|calibrate|doctor|app|ablate|bench (?!compare))|--run|--help")
SMOLVLM, QWEN = "HuggingFaceTB/SmolVLM-256M-Instruct", "Qwen/Qwen2.5-VL-3B-Instruct"


def photo(folder: Path) -> None:
    Image.fromarray(skimage.data.chelsea()).resize((512, 384)).save(folder / "photo.jpg")


def encoder(folder: Path) -> None:
    photo(folder)
    tiny_towers.build("clip", folder).rename(folder / "my-encoder")


def asked(folder: Path) -> dict[str, Any]:
    """An image's tokens and a question, of the embedded eye."""
    from regard.eyes.embedded import EmbeddedEye

    photo(folder)
    eye = EmbeddedEye()
    return {"tokens": eye.look(Image.open(folder / "photo.jpg")), "question": eye.ask("where is the cat?")}


def shortened(folder: Path) -> dict[str, Any]:
    """The model and inputs that docs/shorten.md makes."""
    photo(folder)
    names: dict[str, Any] = {}
    (first, *_) = (code for kind, code in blocks((ROOT / "docs" / "shorten.md").read_text()) if kind == "python")
    exec(tiny(first, folder), names)
    return names


# what a page takes to be there
SETUPS: dict[str, Callable[[Path], dict[str, Any] | None]] = {
    "docs/embedded-eye.md": photo,
    "docs/inside.md": shortened,
    "docs/look.md": encoder,
    "docs/pocket.md": photo,
    "docs/relevance.md": asked,
    "docs/shorten.md": photo,
    "docs/start.md": photo,
}


def tiny(code: str, folder: Path) -> str:
    """With small models of random weights in the place of those of the hub."""
    for name, kind in ((SMOLVLM, "smolvlm"), (QWEN, "qwen2_5_vl")):
        if name in code:
            place = folder / kind if (folder / kind).exists() else tiny_processors.build(kind, folder)
            code = code.replace(name, str(place))
    return code


def lines(text: str) -> list[str]:
    """The command lines of a page's shell blocks; a line that ends with a backslash goes on."""
    found = []
    for kind, content in blocks(text):
        if kind in SHELLS:
            whole = content.replace("\\\n", " ").splitlines()
            shown = [line for line in whole if line.startswith("$ ")] if kind == "console" else whole
            found += [line.removeprefix("$ ") for line in shown if line.strip() and not line.startswith("#")]
    return found


def python_of(text: str) -> list[str]:
    return [code for kind, code in blocks(text) if kind == "python"]


TO_RUN = [name for name in NAMES if name not in ELSEWHERE and not name.startswith("docs/api/")]
PYTHON = [name for name in TO_RUN if python_of((ROOT / name).read_text())]
RUN = [
    name
    for name in ("README.md", *TO_RUN, "docs/advise.md")
    if any(line.startswith("regard ") and not NOT_HERE.search(line) for line in lines((ROOT / name).read_text()))
]


@pytest.mark.parametrize("name", PYTHON)
def test_the_python_of_a_page_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = SETUPS.get(name, lambda folder: None)(tmp_path) or {}
    for code in python_of((ROOT / name).read_text()):
        exec(compile(tiny(code, tmp_path), name, "exec"), names)


@pytest.mark.parametrize("name", RUN)
def test_the_quick_commands_of_a_page_run(name, regard, tmp_path):
    photo(tmp_path)
    (tmp_path / "results").symlink_to(ROOT / "results")
    if name == "docs/measure.md":
        exec(python_of((ROOT / name).read_text())[0], {})
    for which in ("mine", "yours"):
        if not (tmp_path / f"{which}.jsonl").exists():
            (tmp_path / f"{which}.jsonl").write_text('{"id": "a", "right": true}\n{"id": "b", "right": false}\n')
    for line in lines((ROOT / name).read_text()):
        if line.startswith("regard ") and not NOT_HERE.search(line):
            code, out, err = regard(*shlex.split(line, comments=True)[1:])
            assert code == 0, (line, err)
            assert out or "-q" in line


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_every_command_line_can_be_given(file):
    for line in lines(file.read_text()):
        wrong = refused(shlex.split(line, comments=True))
        assert wrong is None, f"{line}: {wrong}"


def refused(words: list[str]) -> str | None:
    """Why a command line cannot be given; None where it can."""
    if words[0] == "torchrun":
        words = ["regard", *words[words.index("regard.cli") + 1 :]]
    if words[0] == "regard":
        return refused_by_regard(words[1:])
    if words[:2] in (["python", "-m"], ["torchrun", "-m"]):
        return None if find_spec(words[2]) else "no such module"
    if words[0] == "python":
        return None if (ROOT / words[1]).exists() else "no such file"
    if words[0] == "make":
        return None if re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE) else "no such target"
    if words[:2] == ["pip", "install"]:
        known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        extras = {one for word in words for one in re.findall(r"\w+", "".join(re.findall(r"\[(.*)\]", word)))}
        return None if extras <= set(known) else f"no such extra: {extras - set(known)}"
    return "an unknown program"


def refused_by_regard(words: list[str]) -> str | None:
    """By typer's own reading of the words, without running anything."""
    from regard.cli import app

    command: Any = typer.main.get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    if words in (["--help"], ["--version"]):
        return None
    if hasattr(command, "commands"):
        return f"no command {words[:1]}"
    try:
        command.make_context("regard", words, resilient_parsing=False)
    except Exception as error:  # typer's, of whatever click it stands on
        return f"{type(error).__name__}: {error}"
    return None


def test_the_reading_of_command_lines_can_fail():
    for line in (
        "regard lok photo.jpg x",
        "regard look photo.jpg",
        "regard look photo.jpg x --kep 0.1",
        "regard look photo.jpg x --keep much",
        "regard bench",
        "regard bench nothing",
        "python -m regard.nothing",
        "python examples/nothing.py",
        "make nothing",
        "pip install 'regard[nothing]'",
        "nothing",
    ):
        assert refused(shlex.split(line)), line
    assert refused(shlex.split("regard look photo.jpg x --keep 0.1 -q")) is None


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_every_block_says_what_it_is(file):
    text = file.read_text()
    for kind, content in blocks(text):
        assert kind in ("python", *SHELLS, *SHOWN), (kind, content[:60])
        assert kind or not content.startswith(("regard ", "import ", "from ")), content[:60]
    for content in indented(text):
        assert not content.startswith(("regard ", "import ", "from ", "pip ")), (
            "put commands and code in a fenced block"
        )


@pytest.mark.parametrize("name", ELSEWHERE)
def test_what_is_run_elsewhere_is_run(name):
    test = (ROOT / "tests" / ELSEWHERE[name]).read_text()
    assert Path(name).name in test
    assert python_of((ROOT / name).read_text()), "it has no block of its own any more"
