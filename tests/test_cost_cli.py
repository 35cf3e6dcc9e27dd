"""`regard cost` as a user meets it."""

import json
import os
import subprocess
import sys

import pytest

from regard import cost

ALL = {
    "vit_base_patch16_224": {"params": "M", "macs": "G"},
    "clip_vit_b_32_text": {"params": "M", "flops": "G"},
    "blip2_vit_g_opt_2.7b": {"trainable_params": "M"},
    "llava_1.6_7b": {"prefill_tflops": "T", "prefill_tflops_kept_0.098": "T", "visual_tokens": "tokens"},
    "giava_tokens": {"visual_tokens": "tokens"},
    "divprune": {"macs": "G", "tokens": "tokens"},
    "HybridBlock": {"params": "M", "training_bytes": "bytes"},
}


@pytest.mark.parametrize("name", ALL)
def test_json_is_one_object_with_what_is_asked_for(regard, name: str):
    code, out, err = regard("cost", name, "--batch", 3, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    answer = cost.of(name, batch=3)
    for what, unit in ALL[name].items():
        assert found[what] == answer[what]
        assert found["units"][what] == unit
    assert found["name"] == name
    assert found["convention"] == "published"


def test_the_table_has_units_and_the_convention(regard):
    code, out, _ = regard("cost", "vit_base_patch16_224", "--resolution", 448, "--batch", 8)
    assert code == 0
    for said in ("86.57", "MiB", "FLOPs = 2 x MACs", "backward_macs", "785", "448"):
        assert said in out


def test_options_reach_the_model(regard):
    line = ("cost", "llava_1.5_7b", "--tokens", 128, "--layer", 2, "--text", 40, "--convention", "exact", "--json")
    code, out, _ = regard(*line)
    assert code == 0
    answer = cost.of("llava_1.5_7b", tokens=128, layer=2, text=40, convention="exact")
    assert {what: json.loads(out)[what] for what in answer.values} == answer.values


def test_without_a_name_all_are_listed_by_group(regard):
    code, out, _ = regard("cost")
    assert code == 0
    for group, names in cost.names().items():
        assert f"{group}:" in out
        assert all(f"  {name}\n" in out for name in names)
    assert json.loads(regard("cost", "--json")[1]) == {group: list(names) for group, names in cost.names().items()}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (("vit_bse_patch16_224",), "did you mean"),
        (("vit_base_patch16_224", "--resolution", 450), "take 448 or 464"),
        (("llava_1.5_7b", "--tokens", 577), "at most the 576 visual tokens"),
        (("vit_base_patch16_224", "--tokens", 9), "tokens does not apply"),
        (("ram", "--batch", 0), "batch must be"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(regard, line, says):
    code, out, err = regard("cost", *line)
    assert (code, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1
    assert "Traceback" not in err


def test_it_starts_at_once():
    """0.3 s on the machine it was written on; the limit leaves room for others."""
    code = "import sys; sys.argv = ['regard', 'cost', 'HybridBlock', '--json']; from regard.cli import main\n"
    code += "try: main()\nexcept SystemExit: print(*(m for m in ('torch', 'numpy', 'PIL') if m in sys.modules))"
    spent = []
    for _ in range(3):
        before = os.times()
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        after = os.times()
        assert run.stdout.splitlines()[1:] == [""]
        spent.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(spent) < 0.6
