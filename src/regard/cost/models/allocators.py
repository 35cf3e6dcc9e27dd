"""The allocators of `regard.allocate`: what deciding costs."""

from dataclasses import dataclass

from regard.cost.allocators import DECIDING, Deciding
from regard.cost.asked import Asked, Facts, checked_side
from regard.errors import BudgetError


@dataclass(frozen=True)
class Chooser:
    """Decides about LLaVA-1.5's tokens, or as many as another resolution makes; a quarter is kept by default."""

    deciding: Deciding
    width: int = 1024
    words: int = 12

    applies = frozenset({"resolution", "tokens"})

    def facts(self, asked: Asked) -> Facts:
        side, facts = checked_side(asked.resolution, 336, 14, "as patches are of 14"), Facts()
        tokens = (side // 14) ** 2
        budget = max(1, tokens // 4) if asked.tokens is None else asked.tokens
        if budget > tokens:
            raise BudgetError(f"tokens must be at most the {tokens} of {side} px, got {budget}")
        macs = 0 if budget == tokens else self.deciding(tokens, budget, self.width, self.words)
        facts.add("params", 0, "M")
        facts.add("macs", asked.batch * macs, "G")
        facts.add("flops", 2 * asked.batch * macs, "G")
        facts.add("visual_tokens", tokens, "tokens")
        facts.add("tokens", budget, "tokens")
        facts.add("resolution", side, "pixels")
        facts.notes.append(f"macs: to decide, of features and keys of {self.width}, a question of {self.words} words")
        return facts


MODELS = {name: Chooser(deciding) for name, deciding in DECIDING.items()}
