"""`regard ask` with tiny saved models of every family, as a person types it and as a program calls it."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import regard
import tiny_processors
from regard import BudgetError, DataError, ModelError, Record, cli
from regard.vlm.chat import chat_inputs
from regard.vlm.measure import PeakMemory
from regard.vlm.opened import opened
from regard.vlm.processors import images_only, load_model, load_processor, model_name

FAMILIES = "llava llava_next qwen2_vl qwen2_5_vl qwen3_vl smolvlm idefics3 internvl paligemma".split()
QUESTION = "where is the cat ?"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """One round, and no threads that wait for each other."""
    monkeypatch.setattr("regard.vlm.ask.ROUNDS", 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """A local model must not so much as look for a network."""
    import socket

    def refuse(*args: object) -> None:
        raise AssertionError(f"a connection to {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("models")
    y, x = np.mgrid[0:90, 0:130]
    for name, planes in (("a.png", (x, y)), ("b.png", (y, x))):
        pixels = np.stack([planes[0] * 2 % 256, planes[1] * 2 % 256, x * y % 256], axis=2)
        Image.fromarray(pixels.astype("uint8")).save(place / name)
    return place


@pytest.fixture(scope="module")
def saved(folder: Path):
    """The folder of a family's tiny model and of its processor."""

    def get(name: str) -> Path:
        return folder / name if (folder / name).exists() else tiny_processors.build(name, folder)

    return get


@pytest.fixture
def typed(monkeypatch, capsys, tmp_path):
    """Run the command line in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def run(*line: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["regard", "ask", *map(str, line)])
        capsys.readouterr()  # what building a model said
        with pytest.raises(SystemExit) as exited:
            cli.main()
            raise SystemExit(0)
        out = capsys.readouterr()
        return int(exited.value.code or 0), out.out, out.err

    verbosity = transformers.logging.get_verbosity()
    yield run
    transformers.logging.set_verbosity(verbosity)
    transformers.logging.enable_progress_bar()


def greedy(model: Any, processor: Any, images: list[Image.Image], new: int) -> list[int]:
    """What the model's own `generate` says to what its processor returns, pixels and all."""
    inputs = chat_inputs(opened(model), processor, images, QUESTION)
    with torch.no_grad():
        return model.generate(**inputs, do_sample=False, max_new_tokens=new)[0, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("name", FAMILIES)
def test_prints_a_table_and_writes_the_report(name: str, saved, folder: Path, typed, tmp_path: Path):
    line = [folder / "a.png", QUESTION, "--model", saved(name), "--budget", 5, "--max-new-tokens", 4]
    code, out, err = typed(*line, "--compare", "visionzip,divprune")
    assert (code, err) == (0, "")
    rows = {row.split("│")[1].strip(): row.split("│")[2:-1] for row in out.splitlines() if row.startswith("│")}
    assert list(rows) == ["all tokens", "visionzip", "divprune"]
    record = Record.load(tmp_path / "regard-ask" / "record.json")
    whole, *shorter = record.answers
    assert len(record.boxes) == whole.visual_tokens == int(rows["all tokens"][0]) > 20
    assert [(answer.allocator, answer.visual_tokens) for answer in shorter] == [("visionzip", 5), ("divprune", 5)]
    assert all(a.prompt_tokens == whole.prompt_tokens - whole.visual_tokens + 5 for a in shorter)
    assert all(a.new_tokens == 4 and min(a.first_token, a.per_token or 0) > 0 for a in record.answers)
    assert [look.allocator for look in record.looks] == ["visionzip", "divprune"]
    assert all(f"{answer.allocator or 'all tokens'}: {answer.text or '(nothing)'}" in out for answer in record.answers)
    assert out.endswith("Open regard-ask/report.html\n")
    written = {file.name for file in (tmp_path / "regard-ask").iterdir()}
    assert written == {"record.json", "report.html", "1-visionzip.png", "1-divprune.png"}


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # PaliGemma's processor under NumPy 2
@pytest.mark.parametrize("name", FAMILIES)
def test_the_untouched_answer_is_that_of_generate(name: str, saved, folder: Path):
    model, processor = load_model(saved(name)), load_processor(saved(name))
    images = [Image.open(folder / "a.png").convert("RGB"), Image.open(folder / "b.png").convert("RGB")]
    asked = regard.ask(model, processor, images, QUESTION, keep=0.2, max_new_tokens=6)
    tokens = greedy(model, processor, images, 6)
    whole, short = asked.answers
    assert whole.text == processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()
    assert whole.new_tokens == len(tokens)
    assert whole.visual_tokens == sum(len(record.boxes) for record in asked.records)
    assert short.visual_tokens == sum(record.looks[0].tokens_out for record in asked.records) < whole.visual_tokens / 4
    assert len(asked.records) == 2
    assert all(record.answers == asked.answers for record in asked.records)
    again = regard.ask(model, processor, images, QUESTION, budget=10**6, max_new_tokens=6).answers
    assert again[0].text == again[1].text == whole.text


def test_an_answer_ends_where_the_model_ends_it(saved, folder: Path):
    model, processor = load_model(saved("qwen2_vl")), load_processor(saved("qwen2_vl"))
    image = Image.open(folder / "a.png").convert("RGB")
    third = greedy(model, processor, [image], 6)[2]
    model.generation_config.eos_token_id = third  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    model.generation_config.pad_token_id = 0  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    tokens = greedy(model, processor, [image], 6)
    answer = regard.ask(model, processor, image, QUESTION, max_new_tokens=6).answers[0]
    assert tokens[-1] == third
    assert answer.new_tokens == len(tokens) < 6


def test_one_new_token_has_no_time_per_token(saved, folder: Path):
    model, processor = load_model(saved("llava")), load_processor(saved("llava"))
    answers = regard.ask(model, processor, folder / "a.png", QUESTION, budget=3, max_new_tokens=1).answers
    assert [answer.per_token for answer in answers] == [None, None]
    assert answers[0].seconds["decide"] == 0 < answers[1].seconds["decide"]


def test_quick_answers_are_timed_three_times(saved, folder: Path, monkeypatch):
    monkeypatch.setattr("regard.vlm.ask.ROUNDS", 3)
    model, processor, seen = load_model(saved("llava")), load_processor(saved("llava")), []
    regard.ask(model, processor, folder / "a.png", QUESTION, compare=["top", "top"], progress=seen.append)
    rounds = ["answer: all tokens", "answer: top"]
    assert seen == ["read", "warm up", *rounds * 3]
    monkeypatch.setattr("regard.vlm.ask.QUICK", 0.0)
    regard.ask(model, processor, folder / "a.png", QUESTION, allocator="top", progress=seen.append)
    assert seen[8:] == ["read", "warm up", *rounds]


def test_as_a_process(saved, folder: Path, tmp_path: Path):
    script = Path(sys.executable).parent / "regard"
    line = [script, "ask", folder / "a.png", folder / "b.png", QUESTION, "--model", saved("smolvlm"), "--keep", "0.2"]
    line += ["--max-new-tokens", "3", "--allocator", "top"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert ", and 1 more image " in done.stdout
    assert done.stdout.endswith("Open regard-ask/1/report.html, regard-ask/2/report.html\n")
    names = [Record.load(tmp_path / "regard-ask" / number / "record.json").picture.name for number in "12"]
    assert names == ["a.png", "b.png"]


def test_json_and_quiet(saved, folder: Path, typed):
    line = [folder / "a.png", QUESTION, "--model", saved("internvl"), "--max-new-tokens", 2]
    code, out, err = typed(*line, "--json", "--allocator", "grid,top")
    assert (code, out) == (2, "")
    assert err == "regard: --allocator takes one name: give several to --compare\n"
    code, out, err = typed(*line, "--json", "--allocator", "top", "--compare", "random", "--seed", 7)
    assert (code, err) == (0, "")
    record = Record.from_json(out)
    assert [answer.allocator for answer in record.answers] == [None, "top", "random"]
    assert record.looks[1].fields["seed"] == 7
    assert len(json.loads(typed(folder / "a.png", *line, "--json")[1])) == 2
    assert typed(*line, "--quiet", "--positions", "compact", "--sign", -1) == (0, "", "")


MISTAKES = {
    "no question": (["a.png"], 2, "the question is missing, as 'a.png' is a file"),
    "two images and no question": (["a.png", "b.png"], 2, "the question is missing"),
    "the question first": ([QUESTION, "a.png"], 2, "the question comes last"),
    "no image": ([QUESTION], 2, "the image is missing"),
    "no quotes": (["a.png", "where", "is", "it"], 2, "put quotes around the question"),
    "an empty question": (["a.png", " "], 2, "the question is empty"),
    "no such image": (["c.png", QUESTION], 1, "c.png: no such file"),
    "a text file": (["text.png", QUESTION], 1, "not an image regard reads"),
    "a budget of 0": (["a.png", QUESTION, "--budget", "0"], 2, "at least 1 token, got 0"),
    "keep 2": (["a.png", QUESTION, "--keep", "2"], 2, "over 0 and at most 1"),
    "both": (["a.png", QUESTION, "--keep", "0.5", "--budget", "3"], 2, "not both"),
    "a misspelt allocator": (["a.png", QUESTION, "--allocator", "divprun"], 2, "no allocator is named 'divprun'"),
    "a misspelt comparison": (["a.png", QUESTION, "--compare", "top,gird"], 2, "no allocator is named 'gird'"),
    "nothing to compare": (["a.png", QUESTION, "--compare", ","], 2, "no allocator is named ''"),
    "a sign of 2": (["a.png", QUESTION, "--sign", "2"], 2, "--sign must be 1 or -1"),
    "no new token": (["a.png", QUESTION, "--max-new-tokens", "0"], 2, "must be at least 1, got 0"),
    "no such device": (["a.png", QUESTION, "--device", "gpu"], 1, "no device is named 'gpu'"),
    "no place to write": (["a.png", QUESTION, "--out", "text.png"], 1, "cannot write to 'text.png'"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_is_one_line(what: str, saved, folder: Path, typed, tmp_path: Path):
    words, exit_code, says = MISTAKES[what]
    (tmp_path / "text.png").write_text("hello, I am a photo")
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    code, out, err = typed(*words, "--model", saved("llava"))
    assert (code, out) == (exit_code, "")
    assert says in err
    assert err.startswith("regard: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "regard-ask").exists()


def spoiled(what: str, place: Path, saved) -> str:
    """A folder with something wrong in it, or a name that nothing has."""
    place.mkdir()
    if what == "of another kind":
        transformers.LlamaConfig().save_pretrained(place)
    elif what == "of parts":
        (place / "config.json").write_text('{"format": "regard-vlm"}')
    elif what == "of an unknown kind":
        (place / "config.json").write_text('{"model_type": "seer"}')
    elif what == "with code":
        auto = {"AutoConfig": "code.Config", "AutoModelForImageTextToText": "code.Model"}
        (place / "config.json").write_text(json.dumps({"model_type": "seer", "auto_map": auto}))
        (place / "code.py").write_text("raise SystemExit('code of a model was run')")
    elif what in ("without weights", "with broken weights", "without a tokenizer"):
        for file in saved("llava").iterdir():
            (place / file.name).write_bytes(file.read_bytes())
        if what == "with broken weights":
            (place / "model.safetensors").write_bytes(b"\0" * 100)
        for file in [*place.glob("*.safetensors" if what == "without weights" else "tokenizer*")]:
            if what != "with broken weights":
                file.unlink()
    return str(place)


NO_MODELS = {
    "empty": "has no config.json",
    "of another kind": "models of type 'llama' are not known",
    "of an unknown kind": "the configuration in",
    "with code": "the configuration in",
    "of parts": "is a model of parts: VLM.from_pretrained loads it",
    "without weights": "the model in",
    "with broken weights": "the model in",
    "without a tokenizer": "the processor in",
}


@pytest.mark.parametrize("what", NO_MODELS)
def test_a_folder_that_is_no_model_is_one_line(what: str, saved, folder: Path, typed, tmp_path: Path):
    code, out, err = typed(folder / "a.png", QUESTION, "--model", spoiled(what, tmp_path / "model", saved))
    assert (code, out) == (1, "")
    assert NO_MODELS[what] in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-VL-3B-Instrct", "./qwen", "qwen/vl/3b", "~/qwen", "a.png"])
def test_a_model_that_is_nowhere_is_one_line(name: str, folder: Path, typed, tmp_path: Path):
    (tmp_path / "a.png").write_bytes((folder / "a.png").read_bytes())
    code, out, err = typed("a.png", QUESTION, "--model", name)
    assert (code, out) == (1, "")
    assert repr(name) in err
    assert err.count("\n") == 1


def test_what_a_program_can_get_wrong(saved, folder: Path):
    model, processor, image = load_model(saved("llava")), load_processor(saved("llava")), folder / "a.png"
    with pytest.raises(BudgetError, match="2 budgets for 1 images"):
        regard.ask(model, processor, image, QUESTION, budget=[3, 4])
    with pytest.raises(DataError, match="no image"):
        regard.ask(model, processor, [], QUESTION)
    with pytest.raises(DataError, match="question is empty"):
        regard.ask(model, processor, image, "")
    with pytest.raises(BudgetError, match="at least 1 token"):
        regard.ask(model, processor, image, QUESTION, max_new_tokens=0)
    with pytest.raises(ModelError, match="expected the model's processor"):
        regard.ask(model, processor.tokenizer, image, QUESTION)
    with pytest.raises(ModelError, match="training mode"):
        regard.ask(model.train(), processor, image, QUESTION)
    other = load_processor(saved("qwen2_vl"))
    other.chat_template = None
    with pytest.raises(ModelError, match="no chat template"):
        regard.ask(load_model(saved("qwen2_vl")), other, image, QUESTION)
    other.chat_template = "{{ messages[0]['content'] + 'text' }}"
    with pytest.raises(DataError, match="cannot make a prompt"):
        regard.ask(load_model(saved("qwen2_vl")), other, image, QUESTION)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "smolvlm", "internvl"])
def test_a_processor_without_videos_is_saved_and_loaded_and_changes_no_class(name: str, saved, tmp_path: Path):
    processor = load_processor(saved(name))
    kind = type(processor).__mro__[1]
    assert kind is getattr(transformers, type(processor).__name__)
    assert not hasattr(processor, "video_processor")
    assert "video_processor" in kind.get_attributes()
    assert images_only(kind) is type(processor)
    processor.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes((saved(name) / "config.json").read_bytes())
    again = load_processor(tmp_path)
    assert again.chat_template == processor.chat_template
    assert again.image_processor.to_dict() == processor.image_processor.to_dict()


def test_a_model_has_its_name_from_the_hub_or_its_folder():
    assert (
        model_name("/x/hub/models--Qwen--Qwen2.5-VL-3B-Instruct/snapshots/66285546d") == "Qwen/Qwen2.5-VL-3B-Instruct"
    )
    assert model_name("models/mine/") == "mine"
    assert model_name("") == ""


def test_without_num2words_one_line_says_so(saved, monkeypatch):
    monkeypatch.setattr("transformers.models.smolvlm.processing_smolvlm.num2words", None)
    with pytest.raises(ModelError, match="pip install num2words"):
        load_processor(saved("smolvlm"))


def test_answers_in_a_record_are_checked(saved, folder: Path):
    model, processor = load_model(saved("llava")), load_processor(saved("llava"))
    record = regard.ask(model, processor, folder / "a.png", QUESTION, budget=3, max_new_tokens=2).records[0]
    assert Record.from_json(record.to_json()) == record
    old = json.loads(record.to_json())
    old.pop("answers")
    assert Record.from_json(json.dumps(old)) == replace(record, answers=())
    for wrong in ({"seconds": {}}, {"visual_tokens": 10**6}, {"new_tokens": 0}, {"text": 3}, {"memory_peak": "1"}):
        data = json.loads(record.to_json())
        data["answers"][1] |= wrong
        with pytest.raises(DataError, match="not a record"):
            Record.from_json(json.dumps(data))


def test_the_peak_is_what_was_held_for_a_moment():
    memory = PeakMemory(torch.device("cpu"))
    if memory.before is None:
        pytest.skip("this system does not tell a process its peak")
    held = torch.ones(50_000_000)
    del held
    assert 190e6 <= (memory.peak or 0) - memory.before < 260e6
    assert (PeakMemory(torch.device("cpu")).before or 0) < memory.before + 60e6
    assert PeakMemory(torch.device("meta")).peak is None
