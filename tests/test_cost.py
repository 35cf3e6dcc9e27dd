"""The cost model against published figures, what its options do, and what holds for all of them. Without torch."""

import json
from math import floor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regard import cost
from regard.cost.counted import Cost
from regard.cost.language import QWEN2_5_3B, QWEN2_5_7B, VICUNA_7B, LanguageModel, pyramid, spread
from regard.cost.layers import cross_attention, self_attention, transformer_block
from regard.cost.models import found
from regard.cost.swin import window_attention
from regard.errors import BudgetError, ModelError, RegardError, ShapeError

# name, what, unit, published, convention, source; published is null where a name must answer all the same
ROWS = json.loads((Path(__file__).parent / "costs.json").read_text())
NAMES = [name for group in cost.names().values() for name in group]


def takes(name: str, option: str) -> bool:
    known = found(name)
    assert known is not None
    return option in known.applies


def held(row: dict, ours: float) -> bool:
    """Whether ours is the published figure, in the digits that its source gives and the tolerance of its kind."""
    published = row["published"]
    if "truncated" in row["convention"]:
        return floor(10 * ours) / 10 == published
    if "rounded" in row["convention"] and row["what"].endswith("params"):
        return round(ours) == published
    loose = {"blip2_qformer": 0.01, "evit": 0.03}
    limits = [limit for part, limit in loose.items() if row["name"].startswith(part)]
    return abs(ours / published - 1) <= (limits or [0.005 if "params" in row["what"] else 0.01])[0]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['name']}-{row['what']}")
def test_a_published_figure_is_met(row: dict):
    answer = cost.of(row["name"])
    assert answer.units[row["what"]] == row["unit"]
    assert answer[row["what"]] > 0
    if row["published"] is not None:
        assert held(row, answer[row["what"]]), (answer[row["what"]], row["published"])


def test_a_figure_that_is_off_is_not_met():
    by = {(row["name"], row["what"]): row for row in ROWS}
    for name, what in by:
        row, ours = by[name, what], cost.of(name)[what]
        if row["published"] is not None and what not in ("visual_tokens",):
            assert not held(row, 0.93 * ours)
            assert not held(row, 1.07 * ours)


@pytest.mark.parametrize("name", NAMES)
def test_every_name_answers_and_a_batch_costs_as_many_times_as_much(name: str):
    one, five = cost.of(name), cost.of(name, batch=5)
    for what in one.values:
        of_each = what in ("macs", "flops", "prefill_macs", "decode_macs", "macs_least") or what.endswith("bytes")
        if of_each:
            assert five[what] == pytest.approx(5 * one[what])
        elif what in ("params", "trainable_params", "tokens", "resolution"):
            assert five[what] == one[what]
    assert one.notes


@settings(deadline=None, max_examples=60)
@given(st.sampled_from([name for name in NAMES if takes(name, "resolution")]), st.integers(1, 12), st.integers(1, 12))
def test_a_larger_image_costs_no_less(name: str, low: int, more: int):
    """14, 16 and 32, by which models divide an image, divide 224."""
    small, large = (cost.of(name, resolution=224 * side) for side in (low, low + more))
    assert large["tokens"] >= small["tokens"]
    assert large["params"] == small["params"] or name == "cascade"  # whose positions are learned for each size
    assert large["macs"] >= small["macs"]


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([32, 64, 96]))
def test_costs_add_up(n: int, m: int, dim: int):
    one, other = self_attention(n, dim, 8), cross_attention(n, m, dim, 8)
    both = one + other
    assert (both.params, both.macs, both.saved) == tuple(
        getattr(one, what) + getattr(other, what) for what in ("params", "macs", "saved")
    )
    assert both.peak == max(one.peak, other.peak)
    assert one + one + one == one * 3
    assert one.again(3).params == one.params
    assert one.again(3).macs == 3 * one.macs
    assert one.batch(3).peak == 3 * one.peak
    assert one.macs == 4 * n * dim**2 + 2 * n * n * dim
    assert (one * 0).peak == 0
    assert Cost() + one == one


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 9))
def test_windows_cost_no_more_than_all_pairs_of_the_padded_grid(h: int, w: int, window: int):
    side = min(window, h, w)
    padded = -(-h // side) * side * -(-w // side) * side
    assert window_attention((h, w), 24, 3, window).macs <= self_attention(padded, 24, 3).macs
    if side == h == w:
        assert window_attention((h, w), 24, 3, window).macs == self_attention(h * w, 24, 3).macs


@settings(deadline=None)
@given(st.integers(1, 576), st.integers(0, 31))
def test_tokens_dropped_later_save_less(kept: int, layer: int):
    early, late = (cost.of("llava_1.5_7b", tokens=kept, layer=at, text=40) for at in (layer, 31))
    assert early["prefill_macs"] <= late["prefill_macs"] <= cost.of("llava_1.5_7b", text=40)["prefill_macs"]
    assert early["kv_cache_bytes"] <= late["kv_cache_bytes"]


def test_fastv_and_pyramiddrop_are_stages_of_one_rule():
    assert spread(576, 40, 4) == [616] * 4
    assert spread(576, 40, 4, [(2, 288)]) == [616, 616, 328, 328]
    assert spread(576, 40, 32, pyramid(576, 32)) == [616] * 8 + [328] * 8 + [184] * 8 + [112] * 8
    answer, dense = cost.of("llava_1.5_7b", text=40), VICUNA_7B.prefill_macs
    assert answer["prefill_macs"] == pytest.approx(dense(616) / 1e9)
    stages = VICUNA_7B.prefill_macs_of_layers([616] * 2 + [328] * 30)
    assert answer["prefill_macs_fastv"] == pytest.approx(stages / 1e9)
    assert answer["prefill_macs_pyramiddrop"] < answer["prefill_macs_fastv"] < answer["prefill_macs"]


def test_conventions_are_what_they_say():
    answer = {way: cost.of("llava_1.5_7b", text=40, convention=way) for way in ("published", "exact", "divprune")}
    two = 32 * (4 * 616 * 4096**2 + 2 * 616**2 * 4096 + 2 * 616 * 4096 * 11008)
    assert answer["divprune"]["prefill_tflops"] == answer["published"]["prefill_tflops"] == pytest.approx(two / 1e12)
    assert answer["exact"]["prefill_tflops"] == pytest.approx(answer["exact"]["prefill_flops"] / 1000)
    third = 32 * 616 * 4096 * 11008 + 4096 * 32000  # the third matrix, and logits
    assert answer["exact"]["prefill_macs"] * 1e9 == pytest.approx(two + third)
    published, exact = (cost.of("pervit_small_224", convention=way) for way in ("published", "exact"))
    dims = [272] * 2 + [320] * 2 + [368] * 6 + [464] * 2
    assert (exact["macs"] - published["macs"]) * 1e9 == pytest.approx(sum(2 * 196**2 * dim for dim in dims))
    assert exact["flops"] == 2 * exact["macs"]


def test_grouped_keys_make_a_smaller_cache():
    tokens = [100] * 28
    assert QWEN2_5_7B.kv_cache(tokens) == 2 * 28 * 4 * 128 * 100
    assert QWEN2_5_7B.params == 7_615_616_512  # of its safetensors
    assert QWEN2_5_3B.params == 3_085_938_688
    assert VICUNA_7B.params == 6_738_415_616
    assert cost.of("vicuna_7b", text=100)["kv_cache_bytes"] == 2 * 2 * 32 * 4096 * 100


def test_a_prompt_read_token_by_token_costs_what_it_costs_at_once_but_for_the_masked_half():
    tiny = LanguageModel("tiny", layers=3, hidden=60, heads=6, kv_heads=2, feed_forward=101, vocabulary=211)
    steps = sum(tiny.decode_macs(cached) - 60 * 211 for cached in range(50))
    assert tiny.prefill_macs(50) - 60 * 211 - steps == 3 * 2 * 60 * (50**2 - 50 * 51 // 2)


def test_a_block_is_its_parts():
    block = transformer_block(197, 768, 12, 3072)
    assert block.macs == 197 * 12 * 768**2 + 2 * 197**2 * 768
    assert block.params == 12 * 768**2 + 13 * 768
    assert block.backward == 2 * block.macs


@pytest.mark.parametrize(
    ("error", "says", "given"),
    [
        (ModelError, "did you mean vit_base_patch16", {"name": "vit_bse_patch16"}),
        (ModelError, "regard cost lists all", {"name": "qqqqq"}),
        (
            ShapeError,
            "multiple of 16 pixels, as its patches are of 16, got 450: take 448 or 464",
            {"name": "vit_base_patch16_224", "resolution": 450},
        ),
        (ShapeError, "multiple of 14 pixels", {"name": "siglip_so400m_patch14_384_vision", "resolution": 400}),
        (ShapeError, "windows and odd grids are padded", {"name": "swin_tiny_patch4_window7_224", "resolution": 226}),
        (ShapeError, "it pools by 32", {"name": "convnext_tiny_224", "resolution": 240}),
        (ShapeError, "take 16", {"name": "vit_base_patch16_224", "resolution": 9}),
        (ShapeError, "batch must be a whole number from 1 to 1,000,000,000, got 0", {"name": "ram", "batch": 0}),
        (ShapeError, "resolution must be a whole number", {"name": "ram", "resolution": -1}),
        (BudgetError, "at most the 576 visual tokens, got 577", {"name": "llava_1.5_7b", "tokens": 577}),
        (ShapeError, "got one of 91 characters", {"name": "vit_base_patch16_224", "resolution": 16 * 10**89}),
        (BudgetError, "tokens must be a whole number from 1", {"name": "llava_1.5_7b", "tokens": 0}),
        (BudgetError, "at most the 1598 visual tokens", {"name": "llava_1.6_7b", "tokens": 2000}),
        (BudgetError, "at most the 32 queries", {"name": "blip2_qformer", "tokens": 33}),
        (BudgetError, "at most the 576 visual", {"name": "llava_1.5_7b_projector", "tokens": 600}),
        (BudgetError, "at most the 576 of 336 px", {"name": "tome", "tokens": 577}),
        (BudgetError, "how many are kept", {"name": "llava_1.5_7b", "layer": 2}),
        (ShapeError, "from 0 to 31", {"name": "llava_1.5_7b", "layer": 32, "tokens": 5}),
        (ModelError, "resolution does not apply to llava_1.5_7b", {"name": "llava_1.5_7b", "resolution": 448}),
        (ModelError, "tokens does not apply to vit_base_patch16_224", {"name": "vit_base_patch16_224", "tokens": 8}),
        (ModelError, "divprune does not apply", {"name": "evit", "convention": "divprune"}),
        (ModelError, "there are published, exact, divprune", {"name": "evit", "convention": "other"}),
    ],
)
def test_bad_input_is_told_in_one_line(error: type[RegardError], says: str, given: dict):
    with pytest.raises(error, match=says.replace("(", r"\(")) as raised:
        cost.of(**given)
    assert "\n" not in str(raised.value)


def test_a_named_resolution_is_read_as_its_model_reads_it():
    answer = cost.of("siglip_so400m_patch14_384_vision")
    assert answer["tokens"] == 27**2
    assert any("6 pixels of 384 are not read" in note for note in answer.notes)
    assert cost.of("VIT_Base_patch16_224") == cost.of("vit_base_patch16_224")


def published_table() -> str:
    """Of docs/cost.md."""
    lines = ["| name | what | published | ours | apart |", "|---|---|---:|---:|---:|"]
    for row in ROWS:
        ours, published = cost.of(row["name"])[row["what"]], row["published"]
        apart = "" if published is None else f"{100 * (ours / published - 1):+.2f} %"
        shown = "" if published is None else f"{published:g}"
        what = f"{row['what']}, {row['unit']}" if row["unit"] != "tokens" else row["what"]
        lines.append(f"| {row['name']} | {what} | {shown} | {ours:.5g} | {apart} |")
    return "\n".join(lines)


def test_the_table_of_the_documentation_is_what_is_computed():
    text = (Path(__file__).parent.parent / "docs" / "cost.md").read_text()
    assert text.split("<!-- published -->\n")[1].split("\n<!-- end -->")[0] == published_table()
