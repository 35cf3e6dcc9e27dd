"""The Querying Transformer (BLIP-2, Li et al., arXiv 2301.12597): a few learned queries read an image encoder.

    x = LN([queries, text]);    then in each layer, post-norm as in BERT,
    x = LN(x + SelfAttention(x)),    q, t = x of the queries, x of the text
    q = LN(q + CrossAttention(q, encoder))    in layers 0, e, 2e, ...  (e = 2: every second layer)
    q = LN(q + MLP_query(q)),    t = LN(t + MLP_text(t)),    x = [q, t]

Queries and text share the self-attention; queries alone see the image, and have a feed-forward of their own. What may
see what is a mask, `qformer_mask`, one for each of the three losses. Ours differs in form: one projection for the
queries, keys and values of self-attention and one for the keys and values of cross-attention, no dropout, and rows that
see nothing give zeros.
"""

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regard.attention._base import Layer, attend, attention_weights, check_input, checked_mask, heads_of, joined, split
from regard.attention.scaled import MultiHeadAttention, copy_into
from regard.errors import ModelError, ShapeError

Kind = Literal["bidirectional", "causal", "unimodal"]


def qformer_mask(kind: Kind, queries: int, text: Bool[Tensor, "b t"]) -> Bool[Tensor, "b n n"]:
    """Who may see whom, (B, Q + T, Q + T), rows see columns. text: (B, T), True = a token, False = padding, seen by
    none.

    "bidirectional": all see all (image-text matching). "causal": queries see queries, text sees queries and the text up
    to itself (generation; UniLM's). "unimodal": queries see queries, text sees text (contrast). Raises ModelError for
    another kind, ShapeError for a text mask that is not bool (B, T).
    """
    if kind not in get_args(Kind):
        raise ModelError(f"no mask is named {kind!r}: there are {', '.join(get_args(Kind))}")
    if text.ndim != 2 or text.dtype != torch.bool:
        raise ShapeError(f"text must be bool of shape (B, T), got {text.dtype} {tuple(text.shape)}")
    place = torch.arange(queries + text.shape[1], device=text.device)
    row, column = place[:, None], place[None, :]
    of_query = column < queries
    if kind == "bidirectional":
        rule = torch.ones_like(row == column)
    elif kind == "causal":
        rule = of_query | (column <= row)
    else:
        rule = of_query == (row < queries)
    return rule & F.pad(text, (queries, 0), value=True)[:, None]


class QFormer(Layer):
    """`layer(queries, encoder_states)`: (B, Q, D) reads (B, E, encoder_dim) and gives (B, Q + T, D).

    queries: how many the layer holds, N(0, 0.02); they are used where None is passed. every: cross-attention in layers
    0, every, 2 every, ... text: whether text tokens have a feed-forward. vocabulary: of `embed`, 0 for none; positions:
    how many tokens a text has at most. The defaults are those of BLIP-2. Raises ShapeError where the heads do not
    divide dim.
    """

    def __init__(
        self,
        dim: int = 768,
        heads: int = 12,
        depth: int = 12,
        hidden: int = 3072,
        *,
        encoder_dim: int = 1408,
        queries: int = 32,
        every: int = 2,
        text: bool = False,
        vocabulary: int = 0,
        positions: int = 512,
        eps: float = 1e-12,
    ) -> None:
        super().__init__()
        self.dim, self.encoder_dim, self.text = dim, encoder_dim, text
        heads_of(dim, heads)
        self.queries = nn.Parameter(torch.randn(queries, dim) * 0.02)
        self.words = nn.Embedding(vocabulary, dim) if vocabulary else None
        self.positions = nn.Embedding(positions, dim) if vocabulary else None
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.blocks = nn.ModuleList(
            _Block(dim, heads, hidden, encoder_dim if place % every == 0 else None, text, eps) for place in range(depth)
        )

    def embed(self, tokens: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """Words and positions of token ids (B, T), to pass as text. Raises ModelError where there is no vocabulary."""
        if self.words is None or self.positions is None:
            raise ModelError("this Q-Former has no vocabulary: give one, or pass embeddings as text")
        if tokens.ndim != 2 or tokens.is_floating_point() or tokens.shape[1] > self.positions.num_embeddings:
            wanted = f"whole numbers of shape (B, T) with T at most {self.positions.num_embeddings}"
            raise ShapeError(f"tokens must be {wanted}, got {tokens.dtype} {tuple(tokens.shape)}")
        return self.words(tokens) + self.positions.weight[: tokens.shape[1]]

    def forward(
        self,
        queries: Float[Tensor, "b q d"] | None,
        encoder_states: Float[Tensor, "b e c"] | None,
        text: Float[Tensor, "b t d"] | None = None,
        mask: Bool[Tensor, "..."] | None = None,
        encoder_mask: Bool[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """(B, Q + T, D), the queries first.

        queries: (B, Q, D), or None for the layer's own. encoder_states: (B, E, encoder_dim), None only where there are
        no queries, (B, 0, D): text alone. text: embeddings (B, T, D), before the norm. mask: of queries and text, (B, Q
        + T) or (B, Q + T, Q + T), all see all by default. encoder_mask: (B, E) or (B, Q, E).
        """
        x, count = self._checked(queries, encoder_states, text, mask, encoder_mask)
        for block in self.blocks:
            x = block(x, count, encoder_states, mask, encoder_mask)
        return x

    def weights(
        self,
        queries: Float[Tensor, "b q d"] | None,
        encoder_states: Float[Tensor, "b e c"] | None,
        text: Float[Tensor, "b t d"] | None = None,
        mask: Bool[Tensor, "..."] | None = None,
        encoder_mask: Bool[Tensor, "..."] | None = None,
        *,
        layer: int = 0,
        cross: bool = True,
    ) -> Float[Tensor, "b h rows k"]:
        """What the queries read of the encoder in one layer, (B, H, Q, E), or, not cross, what queries and text see of
        one another, (B, H, Q + T, Q + T). Raises ShapeError for a layer that is not there or reads no encoder.
        """
        if not -len(self.blocks) <= layer < len(self.blocks):
            raise ShapeError(f"layer must be in [{-len(self.blocks)}, {len(self.blocks)}), got {layer}")
        place = layer % len(self.blocks)
        found = self.blocks[place]
        assert isinstance(found, _Block)
        if cross and (found.cross is None or encoder_states is None):
            raise ShapeError(f"layer must be one that reads an encoder, got {layer}")
        x, count = self._checked(queries, encoder_states, text, mask, encoder_mask)
        for block in self.blocks[:place]:
            x = block(x, count, encoder_states, mask, encoder_mask)
        if found.cross is None or encoder_states is None or not cross:
            return found.attention.weights(x, mask)
        x = found.norm(x + found.attention(x, mask))[:, :count]
        return found.cross.weights(x, encoder_states, encoder_mask)

    def _checked(
        self,
        queries: Tensor | None,
        states: Tensor | None,
        text: Tensor | None,
        mask: Tensor | None,
        encoder_mask: Tensor | None,
    ) -> tuple[Tensor, int]:
        """What goes into the first layer, and how many of it are queries."""
        if states is not None:
            check_input("encoder_states", states, self.encoder_dim)
        if queries is None:
            if states is None:
                raise ShapeError("encoder_states must be given where queries are the layer's own, got None")
            queries = self.queries.expand(len(states), -1, -1)
        check_input("queries", queries, self.dim, None if states is None else len(states))
        batch, count = queries.shape[:2]
        if states is None and count:
            raise ShapeError(f"encoder_states must be given where there are queries, got None and {count} queries")
        x = queries
        if text is not None:
            if not self.text:
                raise ModelError("this Q-Former has no feed-forward for text: make one with text=True")
            check_input("text", text, self.dim, batch)
            x = torch.cat((queries, text), dim=1)
        checked_mask(mask, batch, x.shape[1], x.shape[1])
        checked_mask(encoder_mask, batch, count, 0 if states is None else states.shape[1], "encoder_mask")
        return self.norm(x), count

    @classmethod
    def from_transformers(cls, module: Any) -> "QFormer":
        """From Blip2QFormerModel or InstructBlipQFormerModel, or a model that holds one as `qformer`, whose
        `query_tokens` are then the queries, and whose text embeddings are kept. Alone it has no queries: ours are then
        drawn at random.

        Raises ModelError for a module that is none of these, or has another activation than GELU.
        """
        parent, former = module, getattr(module, "qformer", module)
        if not hasattr(former, "encoder") or not hasattr(former.config, "cross_attention_frequency"):
            raise ModelError(f"{type(module).__name__} is no Q-Former and holds none")
        config = former.config
        if config.hidden_act != "gelu":
            raise ModelError(f"a Q-Former has GELU, got {config.hidden_act!r}")
        embeddings = getattr(former, "embeddings", getattr(parent, "embeddings", None))
        tokens = getattr(parent, "query_tokens", None)
        norm = former.layernorm if hasattr(former, "layernorm") else former.embeddings.layernorm
        layer = cls(
            config.hidden_size,
            config.num_attention_heads,
            config.num_hidden_layers,
            config.intermediate_size,
            encoder_dim=config.encoder_hidden_size,
            queries=32 if tokens is None else tokens.shape[1],
            every=config.cross_attention_frequency,
            text=hasattr(former.encoder.layer[0], "intermediate"),
            vocabulary=0 if embeddings is None else embeddings.word_embeddings.num_embeddings,
            positions=512 if embeddings is None else embeddings.position_embeddings.num_embeddings,
            eps=norm.eps,
        ).to(norm.weight)
        copy_into(layer.norm, norm.weight, norm.bias)
        if tokens is not None:
            layer.queries.data.copy_(tokens[0])
        if layer.words is not None and layer.positions is not None and embeddings is not None:
            copy_into(layer.words, embeddings.word_embeddings.weight, None)
            copy_into(layer.positions, embeddings.position_embeddings.weight, None)
        for mine, theirs in zip(layer.blocks, former.encoder.layer, strict=True):
            assert isinstance(mine, _Block)
            mine.copy_from(theirs)
        return layer


class _Block(nn.Module):
    def __init__(self, dim: int, heads: int, hidden: int, encoder_dim: int | None, text: bool, eps: float) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(dim, heads)
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.cross = None if encoder_dim is None else _Cross(dim, heads, encoder_dim)
        self.cross_norm = None if encoder_dim is None else nn.LayerNorm(dim, eps=eps)
        self.query_mlp = _FeedForward(dim, hidden, eps)
        self.text_mlp = _FeedForward(dim, hidden, eps) if text else None

    def forward(
        self, x: Tensor, count: int, states: Tensor | None, mask: Tensor | None, encoder_mask: Tensor | None
    ) -> Tensor:
        x = self.norm(x + self.attention(x, mask))
        q = x[:, :count]
        if self.cross is not None and self.cross_norm is not None and states is not None:
            q = self.cross_norm(q + self.cross(q, states, encoder_mask))
        q = self.query_mlp(q)
        return q if self.text_mlp is None or x.shape[1] == count else torch.cat((q, self.text_mlp(x[:, count:])), dim=1)

    def copy_from(self, theirs: Any) -> None:
        self_attention = theirs.attention.attention
        parts = [self_attention.query, self_attention.key, self_attention.value]
        _copy_joined(self.attention.qkv, parts)
        pairs = [(self.attention.out, theirs.attention.output.dense), (self.norm, theirs.attention.output.LayerNorm)]
        pairs += _pairs(self.query_mlp, theirs.intermediate_query, theirs.output_query)
        if self.text_mlp is not None:
            pairs += _pairs(self.text_mlp, theirs.intermediate, theirs.output)
        if self.cross is not None:
            other = theirs.crossattention
            _copy_joined(self.cross.kv, [other.attention.key, other.attention.value])
            pairs += [(self.cross.query, other.attention.query), (self.cross.out, other.output.dense)]
            pairs += [(self.cross_norm, other.output.LayerNorm)]
        for mine, part in pairs:
            copy_into(mine, part.weight, part.bias)


class _Cross(nn.Module):
    """Queries of one width read an encoder of another."""

    def __init__(self, dim: int, heads: int, encoder_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.kv, self.out = nn.Linear(dim, dim), nn.Linear(encoder_dim, 2 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, states: Tensor, mask: Tensor | None) -> Tensor:
        k, v = self.kv(states).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = checked_mask(mask, len(x), x.shape[1], states.shape[1], "encoder_mask")
        return self.out(joined(attend(split(self.query(x), self.heads), k, v, seen)))

    def weights(self, x: Tensor, states: Tensor, mask: Tensor | None) -> Tensor:
        k = split(self.kv(states).chunk(2, dim=-1)[0], self.heads)
        seen = checked_mask(mask, len(x), x.shape[1], states.shape[1], "encoder_mask")
        return attention_weights(split(self.query(x), self.heads), k, seen)


class _FeedForward(nn.Module):
    def __init__(self, dim: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.widen, self.narrow, self.norm = nn.Linear(dim, hidden), nn.Linear(hidden, dim), nn.LayerNorm(dim, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.narrow(F.gelu(self.widen(x))))


def _pairs(mine: _FeedForward, wide: Any, narrow: Any) -> list[tuple[nn.Module, Any]]:
    return [(mine.widen, wide.dense), (mine.narrow, narrow.dense), (mine.norm, narrow.LayerNorm)]


def _copy_joined(layer: nn.Linear, parts: list[Any]) -> None:
    copy_into(layer, torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts]))
