"""The kinds of things that have a name, and what each answers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from regard.cost.allocators import DECIDING
from regard.cost.asked import Asked, Facts, checked_side
from regard.cost.counted import Cost
from regard.cost.layers import mlp, visual_expert_attention
from regard.cost.pervit import PerViT
from regard.cost.qformer import QFormer, first_stage, second_stage
from regard.cost.vit import TextTower, ViT
from regard.cost.vlm import mlp_projector
from regard.errors import BudgetError


class OfImages(Protocol):
    """A network that reads square images."""

    def tokens(self, side: int) -> int: ...

    def cost(self, side: int) -> Cost: ...


@dataclass(frozen=True)
class ImageModel:
    """side: its own resolution. unit: what must divide another, `rule` says why. note: what else is to be known.

    extra: more of what it costs, MACs by name.
    """

    model: OfImages
    side: int = 224
    unit: int = 16
    rule: str = "which its patches divide"
    note: str = ""
    extra: tuple[tuple[str, Callable[[Any, int], int]], ...] = ()

    applies = frozenset({"resolution"})

    def facts(self, asked: Asked) -> Facts:
        side, facts = checked_side(asked.resolution, self.side, self.unit, self.rule), Facts()
        model = self.model
        if isinstance(model, PerViT) and asked.convention == "published":
            model = model.without_products()
        facts.add_cost(model.cost(side), asked.batch, model.tokens(side))
        facts.add("resolution", side, "pixels")
        for what, macs in self.extra:
            facts.add(what, asked.batch * macs(model, side), "G")
        facts.notes += [self.note] if self.note else []
        return facts


@dataclass(frozen=True)
class Text:
    """A tower that reads texts, all padded to one length."""

    tower: TextTower

    applies = frozenset()

    def facts(self, asked: Asked) -> Facts:
        facts = Facts()
        facts.add_cost(self.tower.cost(), asked.batch, self.tower.context)
        facts.notes.append(f"of {self.tower.context} tokens, to which every text is padded")
        return facts


@dataclass(frozen=True)
class Bootstrapped:
    """BLIP-2's Q-Former, and what its stages train. language: width of the language model, 0 for the first stage.

    Its cost is that of 32 queries reading an image's tokens, without text. tower: whose tokens these are.
    """

    former: QFormer
    tower: ViT
    language: int = 0

    applies = frozenset({"resolution", "tokens"})

    def facts(self, asked: Asked) -> Facts:
        side = checked_side(asked.resolution, self.tower.side, self.tower.patch, "which its patches divide")
        queries, facts = self.former.queries if asked.tokens is None else asked.tokens, Facts()
        if queries > self.former.queries:
            raise BudgetError(f"tokens must be at most the {self.former.queries} queries, got {queries}")
        read = self.former.without_text().cost(self.tower.tokens(side), queries=queries)
        facts.add_cost(read, asked.batch, queries)
        facts.add("resolution", side, "pixels")
        facts.add("visual_tokens", queries, "tokens")
        facts.add("encoder_tokens", self.tower.tokens(side), "tokens")
        if self.language:
            facts.add("trainable_params", second_stage(self.former, self.language).params, "M")
            facts.notes.append("trainable: Q-Former without text, norm of the encoder, projection; params: the Q-Former")
        else:
            facts.add("params", first_stage(self.former).params, "M")
            facts.notes.append("params: all that the first stage trains, text and heads too; macs: without text")
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
        side, facts = checked_side(asked.resolution, self.side, self.patch, "which its patches divide"), Facts()
        visual = (side // self.patch) ** 2
        whole = visual_expert_attention(visual, 0, self.dim, 1) + mlp(visual, self.dim, self.hidden, True, False)
        cost = (whole + Cost(-4 * self.dim**2)) * self.layers
        facts.add_cost(cost, asked.batch, visual)
        facts.add("visual_tokens", visual, "tokens")
        facts.add("resolution", side, "pixels")
        facts.notes.append("params: of the experts for image tokens alone; macs: of image tokens among themselves")
        return facts


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
class Counted:
    """Tokens alone, with no network of its own."""

    visual: int
    uniform: int
    note: str

    applies = frozenset()

    def facts(self, asked: Asked) -> Facts:
        facts = Facts(notes=[self.note])
        facts.add("visual_tokens", self.visual, "tokens")
        facts.add("uniform_tokens", self.uniform, "tokens")
        return facts


@dataclass(frozen=True)
class Chooser:
    """An allocator that decides about LLaVA-1.5's tokens (or as many as another resolution makes), a quarter by
    default.
    """

    name: str
    width: int = 1024
    words: int = 12

    applies = frozenset({"resolution", "tokens"})

    def facts(self, asked: Asked) -> Facts:
        side, facts = checked_side(asked.resolution, 336, 14, "which patches divide"), Facts()
        tokens = (side // 14) ** 2
        budget = max(1, tokens // 4) if asked.tokens is None else asked.tokens
        if budget > tokens:
            raise BudgetError(f"tokens must be at most the {tokens} of {side} px, got {budget}")
        macs = 0 if budget == tokens else DECIDING[self.name](tokens, budget, self.width, self.words)
        facts.add("params", 0, "M")
        facts.add("macs", asked.batch * macs, "G")
        facts.add("flops", 2 * asked.batch * macs, "G")
        facts.add("visual_tokens", tokens, "tokens")
        facts.add("tokens", budget, "tokens")
        facts.add("resolution", side, "pixels")
        facts.notes.append(f"to decide; features and keys of {self.width}, a question of {self.words} words")
        return facts


@dataclass(frozen=True)
class Layer:
    """A layer of `regard.attention` at the sizes of ViT-B/16: 768 wide, 12 heads, the patches of a 224 px image."""

    cost: Callable[[int], Cost]

    applies = frozenset({"resolution"})

    def facts(self, asked: Asked) -> Facts:
        side, facts = checked_side(asked.resolution, 224, 16, "which patches divide"), Facts()
        facts.add_cost(self.cost(side // 16), asked.batch, (side // 16) ** 2)
        facts.add("resolution", side, "pixels")
        return facts


