"""What the pocket model learns before it looks at scenes.

The decoder learns from words alone to say again what it read (`repeated`), and the projector and the words' embeddings
to name tokens without the decoder (`named`): what is said of a thing is near what its tokens become, so that to find a
thing by its name is one match for all names.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from regard.tokens import VisualTokens
from regard.vlm.interleaved import interleaved
from regard.vlm.pocket import Pocket

_PASSES, _TOKENS, _RATE = 2, 512, 2e-3  # of learning to name tokens: over all, tokens of a step, learning rate
_REPEATED, _TEXTS, _WARM = 400, 64, 50  # steps of learning to repeat, questions of one, and steps of warm-up


class Things(NamedTuple):
    """Tokens of things that questions are about: features (M, D), boxes (M, 4), and the words that are said of each."""

    features: Float[Tensor, "m d"]
    boxes: Float[Tensor, "m 4"]
    said: list[str]


def repeated(model: Pocket, texts: Sequence[tuple[str, str]], seed: int, steps: int = _REPEATED) -> float:
    """Teach the decoder, of words alone, to say one of the things that a question names; the last loss, 0 of no texts.

    Which one is not to be known without the picture; that what was read can be said is learned far sooner from words.
    """
    if not texts:
        return 0.0
    decoder, tokenizer = model.decoder, model.tokenizer
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=_RATE / 2, weight_decay=0.05)
    generator, loss = torch.Generator().manual_seed(seed), torch.zeros(())
    for turn in range(steps):
        chosen = [texts[i] for i in torch.randint(len(texts), (_TEXTS,), generator=generator).tolist()]
        asks, answers = zip(*chosen, strict=True)
        prompts = interleaved(tokenizer, list(asks), [0] * len(chosen), list(answers))
        loss = decoder(input_ids=prompts.ids, attention_mask=prompts.mask.long(), labels=prompts.labels).loss
        for group in optimizer.param_groups:
            group["lr"] = _RATE / 2 * min(1, (turn + 1) / _WARM)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
    return float(loss.detach())


def named(model: Pocket, things: Things, seed: int, passes: int = _PASSES) -> float:
    """Teach projector and words what is said of tokens; the mean loss of the last pass, 0 where there are none.

    loss = - mean over the words w that are said of token i of log softmax(E norm(projector(x_i)))_w
    """
    if not things.said:
        return 0.0
    decoder: Any = model.decoder
    projector, norm, words = model.bridges["projector"], decoder.model.norm, decoder.get_input_embeddings().weight
    table, row = _said(model.tokenizer, things.said, len(words))
    learned = [*projector.parameters(), words]
    optimizer = torch.optim.AdamW(learned, lr=_RATE, weight_decay=0.05)
    generator, losses = torch.Generator().manual_seed(seed), [torch.zeros(())]
    for turn in range(passes):
        losses = []
        for index in torch.randperm(len(row), generator=generator).split(_TOKENS):
            tokens = VisualTokens(things.features[index, None], things.boxes[index, None])
            logits = norm(projector(tokens, None).features[:, 0]) @ words.T
            loss = F.cross_entropy(logits, table[row[index]])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        for group in optimizer.param_groups:
            group["lr"] = _RATE * (1 - (turn + 1) / passes)
    return float(torch.stack(losses).mean())


def _said(tokenizer: Any, texts: Sequence[str], words: int) -> tuple[Float[Tensor, "u w"], Int[Tensor, " m"]]:
    """A distribution over all words for each different text, even over those that it has; and the row of each text."""
    places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    table = torch.zeros(len(places), words)
    for text, place in places.items():
        table[place, tokenizer(text, add_special_tokens=False)["input_ids"]] = 1
    return table / table.sum(dim=1, keepdim=True), torch.tensor([places[text] for text in texts])
