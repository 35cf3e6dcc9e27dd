"""BLIP-2's Q-Former (arXiv 2301.12597): learned queries read an image encoder, through all of its stages."""

from dataclasses import dataclass, replace

from regard.cost.counted import Cost, total
from regard.cost.layers import cross_attention, mlp, self_attention
from regard.cost.parts import linear, norm, parameters


@dataclass(frozen=True)
class QFormer:
    """QFormer. text: whether it has a feed-forward for text. vocabulary: of words, with 512 positions; 0 for none."""

    dim: int = 768
    heads: int = 12
    depth: int = 12
    hidden: int = 3072
    encoder_dim: int = 1408
    queries: int = 32
    every: int = 2
    text: bool = False
    vocabulary: int = 0
    positions: int = 512

    def cost(self, encoder: int, text: int = 0, queries: int | None = None) -> Cost:
        """encoder: tokens that are read. text: tokens beside the queries. queries: that are used, all by default."""
        asked = self.queries if queries is None else queries
        words = (self.vocabulary + self.positions) * self.dim if self.vocabulary else 0
        first = parameters(self.queries * self.dim + words) + norm(asked + text, self.dim)
        blocks = total(self._block(asked, text, encoder, place % self.every == 0) for place in range(self.depth))
        reads = -(-self.depth // self.every)
        once = Cost(saved=-max(reads - 1, 0) * encoder * self.encoder_dim, cache=-blocks.cache)  # the same states
        return first + blocks + once

    def _block(self, queries: int, text: int, encoder: int, reads: bool) -> Cost:
        n = queries + text
        cost = self_attention(n, self.dim, self.heads) + norm(n, self.dim)
        if reads:
            cost += cross_attention(queries, encoder, self.dim, self.heads, self.encoder_dim) + norm(queries, self.dim)
        cost += mlp(queries, self.dim, self.hidden) + norm(queries, self.dim)
        if self.text:
            cost += mlp(text, self.dim, self.hidden) + norm(text, self.dim)
        return cost.beside(n * self.dim)

    def without_text(self) -> "QFormer":
        """As the second stage trains it: no words, no feed-forward for them."""
        return replace(self, text=False, vocabulary=0)


def first_stage(former: QFormer) -> Cost:
    """All that BLIP-2's first stage trains but the norm of the encoder: the Q-Former with its text, projections to 256
    for contrast, a head of 2 for matching, and BERT's head for words, whose last matrix is that of the words.
    """
    dim = former.dim
    heads = 2 * linear(0, dim, 256).params + linear(0, dim, 2).params
    words = linear(0, dim, dim).params + norm(0, dim).params + former.vocabulary
    return parameters(former.cost(0).params + heads + words)


def second_stage(former: QFormer, language: int) -> Cost:
    """What the second stage trains: Q-Former, the norm of the encoder's tokens, a projection to the language model."""
    rest = norm(0, former.encoder_dim).params + linear(0, former.dim, language).params
    return parameters(former.without_text().cost(0).params + rest)
