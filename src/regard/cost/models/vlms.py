"""LLaVA (arXiv 2310.03744) and its projector, CogVLM's experts (arXiv 2311.03079), gaze tokens (arXiv 2507.15833)."""

from dataclasses import dataclass

from regard.cost import language
from regard.cost.asked import Asked, Facts, checked_side
from regard.cost.counted import Cost
from regard.cost.gaze import GazeTokens
from regard.cost.layers import mlp, visual_expert_attention
from regard.cost.models.towers import CLIP_L_336
from regard.cost.vlm import VISUALS_1_6, LLaVA, mlp_projector
from regard.errors import BudgetError


@dataclass(frozen=True)
class Projector:
    """An MLP between an encoder and a language model."""

    tokens: int
    into: int
    out: int

    applies = frozenset({"tokens"})

    def facts(self, asked: Asked) -> Facts:
        count, facts = self.tokens if asked.tokens is None else asked.tokens, Facts()
        if count > self.tokens:
            raise BudgetError(f"tokens must be at most the {self.tokens} visual tokens, got {count}")
        facts.add_cost(mlp_projector(count, self.into, self.out), asked.batch, count)
        return facts


@dataclass(frozen=True)
class Experts:
    """CogVLM's visual experts in all layers of its language model: what they add to it."""

    layers: int
    dim: int
    hidden: int
    side: int = 490
    patch: int = 14

    applies = frozenset({"resolution"})

    def facts(self, asked: Asked) -> Facts:
        side = checked_side(asked.resolution, self.side, self.patch, f"as patches are of {self.patch}")
        visual, facts = (side // self.patch) ** 2, Facts()
        both = visual_expert_attention(visual, 0, self.dim, 1) + Cost(-4 * self.dim**2)  # text's own projections
        cost = (both + mlp(visual, self.dim, self.hidden, gated=True, bias=False)) * self.layers
        facts.add_cost(cost, asked.batch, visual)
        facts.add("visual_tokens", visual, "tokens")
        facts.add("resolution", side, "pixels")
        facts.notes.append("params: of the experts for image tokens alone; macs: of image tokens among themselves")
        return facts


MODELS = {
    "llava_1.5_7b": LLaVA(CLIP_L_336, language.VICUNA_7B, (576,)),
    "llava_1.5_13b": LLaVA(CLIP_L_336, language.VICUNA_13B, (576,)),
    "llava_1.6_7b": LLaVA(CLIP_L_336, language.VICUNA_7B, VISUALS_1_6, tiles=5),
    "llava_1.5_7b_projector": Projector(576, 1024, 4096),
    "cogvlm_17b_visual_expert": Experts(32, 4096, 11008),
    "giava_tokens": GazeTokens(),
}
