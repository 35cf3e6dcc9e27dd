"""Vision-language models: an encoder, a projector, a language model that reads V visual and T text tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

from regard.cost.asked import BYTES, Asked, Facts
from regard.cost.counted import Cost
from regard.cost.language import LanguageModel, pyramid, spread
from regard.cost.parts import activation, linear
from regard.cost.vit import ViT
from regard.errors import BudgetError, ShapeError

# Text tokens of DivPrune's eleven benchmarks (tflops.py): COCO, Flickr30k, GQA, MMBench, MME, MMMU, NoCaps, OK-VQA,
# POPE, ScienceQA, SEED-Bench; and the visual tokens that LLaVA-1.6 makes of their images.
TEXTS = (15, 15, 23, 83, 25, 113, 15, 39, 21, 91, 57)
VISUALS_1_6 = (2225, 1922, 2239, 1927, 2108, 1882, 2292, 2249, 2250, 1598, 2116)
KEPT = 0.098


def mlp_projector(tokens: int, into: int, out: int) -> Cost:
    """LLaVA's mlp2x_gelu, and `regard.vlm.bridges.projector`."""
    return linear(tokens, into, out) + activation(tokens, out) + linear(tokens, out, out)


@dataclass(frozen=True)
class LLaVA:
    """visuals: tokens of the images of DivPrune's benchmarks, one number where all have as many. tiles: that the
    encoder reads of an image.
    """

    vision: ViT
    language: LanguageModel
    visuals: tuple[int, ...]
    tiles: int = 1

    applies = frozenset({"tokens", "text", "layer", "divprune"})

    def facts(self, asked: Asked) -> Facts:
        """Means over DivPrune's benchmarks, where neither text nor another model says otherwise."""
        facts, texts = Facts(), TEXTS if asked.text is None else (asked.text,)
        visuals = self.visuals if len(self.visuals) == len(texts) else (round(_mean(self.visuals)),) * len(texts)
        pairs = list(zip(visuals, texts, strict=True))
        if asked.tokens is not None and asked.tokens > min(visuals):
            raise BudgetError(f"tokens must be at most the {min(visuals)} visual tokens, got {asked.tokens}")
        if asked.layer is not None and asked.tokens is None:
            raise BudgetError("layer says from where on tokens are dropped: say too how many are kept, by tokens")
        if asked.layer is not None and not 0 <= asked.layer < self.language.layers:
            raise ShapeError(f"layer must be from 0 to {self.language.layers - 1}, got {asked.layer}")
        whole = [spread(v, t, self.language.layers) for v, t in pairs]
        shares = [spread(v - round((1 - KEPT) * v), t, self.language.layers) for v, t in pairs]
        read = whole
        if asked.tokens is not None:
            stage = (asked.layer or 0, asked.tokens)
            read = [spread(v, t, self.language.layers, [stage]) for v, t in pairs]
        for what, tokens in (("prefill_tflops", read), (f"prefill_tflops_kept_{KEPT}", shares)):
            facts.add(what, asked.batch * self._tflops(tokens, asked.convention), "T")
        self._counts(facts, asked, pairs, read)
        _notes(facts, asked, len(pairs), self)
        return facts

    def _tflops(self, prompts: Sequence[list[int]], convention: str) -> float:
        """As the convention counts: MACs with two matrices, or true FLOPs."""
        if convention == "exact":
            return _mean([2 * self.language.prefill_macs_of_layers(tokens) for tokens in prompts])
        return _mean([self.language.two_matrix_macs_of_layers(tokens) for tokens in prompts])

    def _counts(self, facts: Facts, asked: Asked, pairs: list[tuple[int, int]], read: list[list[int]]) -> None:
        language, batch, visual = self.language, asked.batch, _mean([v for v, _ in pairs])
        facts.add("visual_tokens", visual, "tokens")
        facts.add("visual_tokens_kept", visual if asked.tokens is None else asked.tokens, "tokens")
        facts.add("text_tokens", _mean([t for _, t in pairs]), "tokens")
        facts.add("tokens", _mean([max(tokens) for tokens in read]), "tokens")
        facts.add("prefill_macs", batch * _mean([language.prefill_macs_of_layers(tokens) for tokens in read]), "G")
        facts.add("prefill_flops", 2 * batch * _mean([language.prefill_macs_of_layers(one) for one in read]), "G")
        for how, macs in self._pruned(pairs).items():
            facts.add(f"prefill_macs_{how}", batch * macs, "G")
        facts.add("decode_macs", batch * _mean([language.decode_macs_of_layers(tokens) for tokens in read]), "G")
        tower = self.vision.cost(self.vision.side).batch(self.tiles)
        projector = mlp_projector(round(visual), self.vision.dim, language.hidden)
        facts.add("params", tower.params + projector.params + language.params, "M")
        facts.add("vision_macs", batch * tower.macs, "G")
        facts.add("projector_macs", batch * projector.macs, "G")
        facts.add("kv_cache_bytes", BYTES * batch * _mean([language.kv_cache(tokens) for tokens in read]), "bytes")
        peak = max(tower.peak, max(language.peak(tokens) for tokens in read))
        facts.add("activation_bytes", BYTES * batch * peak, "bytes")

    def _pruned(self, pairs: list[tuple[int, int]]) -> dict[str, float]:
        """MACs with pruning inside the language model as published: FastV and PyramidDrop keep halves."""
        depth, count = self.language.layers, self.language.prefill_macs_of_layers
        fastv = [count(spread(v, t, depth, [(2, round(v / 2))])) for v, t in pairs]
        dropped = [count(spread(v, t, depth, pyramid(v, depth))) for v, t in pairs]
        return {"fastv": _mean(fastv), "pyramiddrop": _mean(dropped)}


def _notes(facts: Facts, asked: Asked, prompts: int, model: LLaVA) -> None:
    exact = "FLOPs = 2 x MACs, three matrices, and the logits of the last token"
    said = exact if asked.convention == "exact" else "DivPrune's: MACs with a feed-forward of two matrices, no logits"
    facts.notes.append("fastv: half the visual tokens from layer 2 on; pyramiddrop: half at 1/4, 1/2, 3/4 of the depth")
    facts.notes.append(f"prefill_tflops, with and without kept: {said}; prefill_macs and prefill_flops are exact")
    if prompts > 1:
        facts.notes.append(f"means over the {prompts} benchmarks of DivPrune's tflops.py; --text gives one prompt")
    if len(model.visuals) > 1:
        facts.notes.append("how many visual tokens there are depends on an image's shape: theirs are taken")


@dataclass(frozen=True)
class Decoder:
    """A language model alone. visual: tokens of an image, where one is read."""

    language: LanguageModel

    applies = frozenset({"text", "divprune"})

    def facts(self, asked: Asked) -> Facts:
        """Of a prompt of `text` tokens, visual or not, 1024 by default."""
        facts, language, batch = Facts(), self.language, asked.batch
        count = 1024 if asked.text is None else asked.text
        tokens = [count] * language.layers
        two = language.two_matrix_macs_of_layers(tokens)
        printed = two if asked.convention == "divprune" else 2 * language.prefill_macs(count)
        facts.add("params", language.params, "M")
        facts.add("tokens", count, "tokens")
        facts.add("prefill_tflops", batch * printed, "T")
        facts.add("prefill_macs", batch * language.prefill_macs(count), "G")
        facts.add("decode_macs", batch * language.decode_macs(count), "G")
        facts.add("kv_cache_bytes", BYTES * batch * language.kv_cache(tokens), "bytes")
        facts.add("activation_bytes", BYTES * batch * language.peak(tokens), "bytes")
        facts.notes.append(f"a prompt of {count} tokens, visual ones among them; --text takes another number")
        if asked.convention != "divprune":
            facts.notes.append("prefill_tflops: 2 x MACs; of a model of DivPrune's table, as that counts")
        return facts


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
