"""BLIP-2's first stage (Li et al., arXiv 2301.12597): a Q-Former learns from pictures and their texts, by three losses.

    s(i, t) = max_q <image_q(i), text(t)> / temperature
    ITC = (CE(s(i, all texts), i's own) + CE(s(t, all images), t's own)) / 2        queries and text apart ("unimodal")
    ITM = CE(mean_q match(queries(i, t)), whether i and t are a pair)               all see all ("bidirectional")
    ITG = CE(words(t_n | queries, t_<n), t_n)                                       text sees what is before ("causal")

For each pair ITM has two that are none, a hard image for the text and a hard text for the image, drawn by similarity
from the process's own batch (the released code draws from those of all processes). Labels of ITC and ITG are smoothed
by .1. Text shares the Q-Former's self-attention and has a feed-forward of its own, which the second stage drops.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regard.attention.qformer import QFormer, qformer_mask
from regard.errors import DataError
from regard.tokens import VisualTokens
from regard.vlm.bridges.qformer import QueryBridge

SMOOTHING, TEMPERATURE = 0.1, 0.07
_IGNORED = -100


class Losses(NamedTuple):
    """itc, itm and itg, each a mean over the batch."""

    itc: Float[Tensor, ""]
    itm: Float[Tensor, ""]
    itg: Float[Tensor, ""]


class Aligner(nn.Module):
    """The Q-Former of a bridge with words beside it; what the bridge has is shared or begins equal. words: how many the
    tokenizer has. longest: words of a text at most. space: width of the space of ITC.
    """

    def __init__(self, bridge: QueryBridge, words: int, longest: int = 32, space: int = 256) -> None:
        super().__init__()
        self.read, self.longest, self.words = bridge.read, longest, words
        self.former = _with_words(bridge.former, words + 3, longest + 2)
        dim = bridge.former.dim
        self.image, self.text, self.match = nn.Linear(dim, space), nn.Linear(dim, space), nn.Linear(dim, 2)
        self.head = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.LayerNorm(dim))
        self.bias = nn.Parameter(torch.zeros(words + 3))
        self.temperature = nn.Parameter(torch.tensor(TEMPERATURE))

    @property
    def marks(self) -> tuple[int, int, int]:
        """Ids of what begins a text that is read, what begins one that is written, and what ends both."""
        return self.words, self.words + 1, self.words + 2

    def encoded(self, tokenizer: Any, texts: Sequence[str]) -> tuple[Int[Tensor, "b t"], Bool[Tensor, "b t"]]:
        """Ids of texts between marks, padded at the end, and which are real."""
        begin, _, end = self.marks
        rows = [list(tokenizer(text, add_special_tokens=False)["input_ids"])[: self.longest] for text in texts]
        rows = [torch.tensor([begin, *row, end]) for row in rows]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        return ids, torch.arange(ids.shape[1]) < lengths[:, None]

    def forward(
        self,
        tokens: VisualTokens,
        ids: Int[Tensor, "b t"],
        valid: Bool[Tensor, "b t"],
        gather: Callable[[Tensor], Tensor] = lambda value: value,
        place: int = 0,
    ) -> Losses:
        """gather: the batches of all processes; place: where this one's begins among them. Raises DataError for fewer
        than two pairs.
        """
        if len(ids) < 2:
            raise DataError(f"pictures and texts are told apart in batches of 2 or more, got {len(ids)}: raise batch")
        states = self.read(tokens.features, tokens.boxes)
        images, texts = self.images(states, tokens.mask), self.texts(ids, valid)
        itc = contrast(images, texts, gather, place, self.temperature.clamp(1e-3, 0.5))
        with torch.no_grad():
            near = similarity(images, texts) / self.temperature.clamp(1e-3, 0.5)
            hard_text, hard_image = hard(near), hard(near.T)
        own = torch.arange(len(ids), device=ids.device)
        which = (torch.cat((own, hard_image, own)), torch.cat((own, own, hard_text)))
        mask = None if tokens.mask is None else tokens.mask[which[0]]
        logits = self.matches(states[which[0]], mask, ids[which[1]], valid[which[1]])
        paired = (torch.arange(len(logits), device=ids.device) < len(ids)).long()
        written = self.writes(states, tokens.mask, ids, valid)
        following = ids[:, 1:].masked_fill(~valid[:, 1:], _IGNORED)
        itg = F.cross_entropy(
            written[:, :-1].flatten(0, 1), following.flatten(), ignore_index=_IGNORED, label_smoothing=SMOOTHING
        )
        return Losses(itc, F.cross_entropy(logits, paired), itg)

    def images(self, states: Float[Tensor, "b n c"], mask: Bool[Tensor, "b n"] | None) -> Float[Tensor, "b q s"]:
        """What the queries make of images, of length 1."""
        return F.normalize(self.image(self.former(None, states, encoder_mask=mask)), dim=-1)

    def texts(self, ids: Int[Tensor, "b t"], valid: Bool[Tensor, "b t"]) -> Float[Tensor, "b s"]:
        """What the first mark of each text makes of it, of length 1."""
        words = self.former.embed(ids)
        return F.normalize(self.text(self.former(words[:, :0], None, words, valid)[:, 0]), dim=-1)

    def matches(
        self,
        states: Float[Tensor, "b n c"],
        mask: Bool[Tensor, "b n"] | None,
        ids: Int[Tensor, "b t"],
        valid: Bool[Tensor, "b t"],
    ) -> Float[Tensor, "b 2"]:
        """Logits of no pair and of a pair."""
        count = len(self.former.queries)
        rule = qformer_mask("bidirectional", count, valid)
        return self.match(self.former(None, states, self.former.embed(ids), rule, mask)[:, :count]).mean(dim=1)

    def writes(
        self,
        states: Float[Tensor, "b n c"],
        mask: Bool[Tensor, "b n"] | None,
        ids: Int[Tensor, "b t"],
        valid: Bool[Tensor, "b t"],
    ) -> Float[Tensor, "b t v"]:
        """Logits of the word after each, the words' own embeddings being the output's too."""
        count = len(self.former.queries)
        begun = torch.cat((torch.full_like(ids[:, :1], self.marks[1]), ids[:, 1:]), dim=1)
        rule = qformer_mask("causal", count, valid)
        out = self.former(None, states, self.former.embed(begun), rule, mask)[:, count:]
        assert self.former.words is not None
        return self.head(out) @ self.former.words.weight.T + self.bias

    @torch.no_grad()
    def hand_over(self, bridge: QueryBridge) -> None:
        """Give the bridge's Q-Former what was learned, without the words."""
        mine = self.former.state_dict()
        bridge.former.load_state_dict({name: mine[name] for name in bridge.former.state_dict()})


def similarity(images: Float[Tensor, "b q s"], texts: Float[Tensor, "c s"]) -> Float[Tensor, "b c"]:
    """Of each image with each text: the largest inner product over its queries."""
    return torch.einsum("bqs,cs->bcq", images, texts).amax(dim=2)


def contrast(
    images: Float[Tensor, "b q s"],
    texts: Float[Tensor, "b s"],
    gather: Callable[[Tensor], Tensor],
    place: int,
    temperature: Tensor,
) -> Float[Tensor, ""]:
    """ITC: each image among all texts and each text among all images, of all processes."""
    own = place + torch.arange(len(images), device=images.device)
    to_text = similarity(images, gather(texts)) / temperature
    to_image = similarity(gather(images), texts).T / temperature
    return sum(F.cross_entropy(each, own, label_smoothing=SMOOTHING) for each in (to_text, to_image)) / 2  # pyright: ignore


def hard(near: Float[Tensor, "b b"]) -> Int[Tensor, " b"]:
    """For each row another column, drawn by the softmax of its similarity, never the row's own."""
    own = torch.eye(len(near), dtype=torch.bool, device=near.device)
    return near.float().masked_fill(own, -torch.inf).softmax(dim=1).multinomial(1)[:, 0]


def _with_words(former: QFormer, vocabulary: int, positions: int) -> QFormer:
    """The same Q-Former, with a feed-forward and embeddings for words."""
    blocks: list[Any] = list(former.blocks)
    every = next((place for place, block in enumerate(blocks) if place and block.cross is not None), len(blocks))
    made = QFormer(
        former.dim,
        blocks[0].attention.heads,
        len(blocks),
        blocks[0].query_mlp.widen.out_features,
        encoder_dim=former.encoder_dim,
        queries=len(former.queries),
        every=every,
        text=True,
        vocabulary=vocabulary,
        positions=positions,
        eps=former.norm.eps,
    ).to(former.queries)
    made.load_state_dict(former.state_dict(), strict=False)
    assert made.words is not None
    assert made.positions is not None
    nn.init.normal_(made.words.weight, std=0.02)
    nn.init.normal_(made.positions.weight, std=0.02)
    return made
