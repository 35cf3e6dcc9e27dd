"""The prefill formula against the same decoder built on the meta device and counted by PyTorch; decoding."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from regard.cost.language import QWEN2_5_7B, LanguageModel


def counted(model: LanguageModel, tokens: int) -> int:
    """MACs of the matrix products of one prefill, none of them computed."""
    head, d = model.hidden // model.heads, model.hidden

    def linear(x: torch.Tensor, out: int) -> torch.Tensor:
        return torch.nn.functional.linear(x, torch.empty(out, x.shape[-1], device="meta"))

    with FlopCounterMode(display=False) as counter:
        x = torch.empty(1, tokens, d, device="meta")
        for _ in range(model.layers):
            q = linear(x, model.heads * head).view(1, tokens, model.heads, head).transpose(1, 2)
            k, v = (
                linear(x, model.kv_heads * head).view(1, tokens, model.kv_heads, head).transpose(1, 2) for _ in "kv"
            )
            k, v = (t.repeat_interleave(model.heads // model.kv_heads, dim=1) for t in (k, v))
            y = (q @ k.transpose(2, 3)).softmax(dim=-1) @ v
            x = linear(y.transpose(1, 2).reshape(1, tokens, d), d)
            x = linear(linear(x, model.feed_forward) * linear(x, model.feed_forward), d)
        linear(x[:, -1:], model.vocabulary)
    return counter.get_total_flops() // 2


def test_prefill_macs_are_what_pytorch_counts():
    tiny = LanguageModel("tiny", layers=3, hidden=60, heads=6, kv_heads=2, feed_forward=101, vocabulary=211)
    for tokens in (1, 13, 97):
        assert tiny.prefill_macs(tokens) == counted(tiny, tokens)
    assert QWEN2_5_7B.prefill_macs(640) == counted(QWEN2_5_7B, 640)


def test_layers_may_read_different_numbers_of_tokens():
    tiny = LanguageModel("tiny", layers=3, hidden=60, heads=6, kv_heads=2, feed_forward=101, vocabulary=211)
    logits = 60 * 211
    each = [(tiny.prefill_macs(tokens) - logits) // 3 for tokens in (97, 13, 1)]
    assert tiny.prefill_macs_of_layers([97, 13, 1]) == sum(each) + logits


def test_fewer_tokens_cost_less_than_their_share():
    assert QWEN2_5_7B.prefill_macs(2048) > 2 * QWEN2_5_7B.prefill_macs(1024)


def test_a_token_that_is_decoded_costs_what_the_last_row_of_a_prefill_does():
    tiny = LanguageModel("tiny", layers=3, hidden=60, heads=6, kv_heads=2, feed_forward=101, vocabulary=211)
    width, kv = 60, 20
    per_layer = 60 * (2 * width + 2 * kv) + 3 * 60 * 101
    assert tiny.decode_macs(96) == 3 * (per_layer + 2 * 97 * width) + 60 * 211
    assert tiny.decode_macs_of_layers([96, 40, 40]) == tiny.decode_macs(96) - 2 * 2 * 56 * width
