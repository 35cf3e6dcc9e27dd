"""BLIP-2 (arXiv 2301.12597): its Q-Former, and what its stages train."""

from dataclasses import dataclass, replace

from regard.cost.asked import Asked, Facts, checked_side
from regard.cost.models.towers import CLIP_L, EVA_G
from regard.cost.qformer import QFormer, first_stage, second_stage
from regard.cost.vit import ViT
from regard.errors import BudgetError


@dataclass(frozen=True)
class Bootstrapped:
    """Queries that read an image's tokens, without text. tower: whose tokens these are. language: width of the language
    model, 0 for the first stage, which has none.
    """

    former: QFormer
    tower: ViT
    language: int = 0

    applies = frozenset({"resolution", "tokens"})

    def facts(self, asked: Asked) -> Facts:
        side = checked_side(
            asked.resolution, self.tower.side, self.tower.patch, f"as patches are of {self.tower.patch}"
        )
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
            facts.notes.append(
                "trainable: Q-Former without text, norm of the encoder, projection; params: the Q-Former"
            )
        else:
            facts.add("params", first_stage(self.former).params, "M")
            facts.notes.append("params: all that the first stage trains, text and heads too; macs: without text")
        return facts


G = QFormer(text=True, vocabulary=30523)  # BERT's words, and one that begins a decoded text
L = replace(G, encoder_dim=1024)

MODELS = {
    "blip2_qformer": Bootstrapped(G, EVA_G),
    "blip2_vit_l_opt_2.7b": Bootstrapped(L, CLIP_L, 2560),
    "blip2_vit_g_opt_2.7b": Bootstrapped(G, EVA_G, 2560),
    "blip2_vit_g_opt_6.7b": Bootstrapped(G, EVA_G, 4096),
    "blip2_vit_l_t5_xl": Bootstrapped(L, CLIP_L, 2048),
    "blip2_vit_g_t5_xl": Bootstrapped(G, EVA_G, 2048),
    "blip2_vit_g_t5_xxl": Bootstrapped(G, EVA_G, 4096),
}
