"""docs/attention.md and its pictures: a paragraph and the weights of every layer of regard.attention.

The weights are those of layers with random parameters that read the patches of one photo: they show who may see whom,
and how evenly, not what a trained layer looks at. A row is a query; bright is much, on the scale of the picture.
"""

import inspect
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demo import photos  # pyright: ignore[reportAttributeAccessIssue]  # a folder of that name may hide it
from PIL import Image
from torch import Tensor, nn

from regard.bench.readme import generated

FOLDER, PAGE = Path("docs") / "attention", Path("docs") / "attention.md"
SIDE, DIM, HEADS = 12, 48, 4
HEAD = """# The attention layers

Every layer of the survey's Sections 1.1 to 1.4, 5.1 and 5.2, to use alone in a model of yours: `layer(x)` or
`layer(x, context, mask=...)`, (B, N, D) in and out; masks are boolean, True = may be seen, and a row that sees nothing
gives zeros.

```python
import torch
from regard.attention.cross import CrossAttention
from regard.attention.window import SwinBlock

words, patches = torch.randn(2, 7, 64), torch.randn(2, 14 * 14, 64)
heard = CrossAttention(64, heads=4)(words, patches)  # (2, 7, 64)
seen = SwinBlock(64, heads=4, window=7, hidden=256, shift=3)(patches, (14, 14))  # (2, 196, 64)
```

Each is held to an
independent implementation, outputs and gradients, with parameters drawn so that nothing is hidden, and with mutations
that must fail (`tests/test_attention_*.py`). `Class.from_transformers(module)` lifts a part out of a Hugging Face
model; `save_pretrained` and `from_pretrained` keep ours. `regard bench layers` measures time and memory beside the
references.

The pictures are the weights, mean over heads, of layers with random parameters that read {tokens} patches of one photo
(`python examples/attention_pictures.py`): they show who may see whom, and how evenly, not what a trained layer looks
at. A row is a query.
"""
TAIL = """## Time and memory

Ours beside the reference, with the same weights and inputs, in turn: the median of the ratio of neighbours, its 95 %
interval in brackets, and after it what the reference measures over itself in the same run. Below 1 ours takes less.

<!-- figures: layers -->
<!-- end -->
"""


def patches() -> Tensor:
    """(1, 144, 48): the patches of one photo, standardised."""
    small = np.asarray(photos(256, 192).resize((SIDE * 4, SIDE * 4)), dtype=np.float32)
    cells = torch.from_numpy(small).unflatten(0, (SIDE, 4)).unflatten(2, (SIDE, 4))
    x = cells.permute(0, 2, 1, 3, 4).reshape(1, -1, DIM)
    return (x - x.mean(dim=1, keepdim=True)) / x.std()


def made(layer: nn.Module) -> Any:
    """The layer, with parameters large enough to prefer some tokens."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in layer.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.35, generator=generator)
    return layer.eval()


def drawn(weights: Tensor) -> Image.Image:
    """(B, H, Q, K) as a picture of Q rows and K columns, the mean over heads, by the square root."""
    matrix = weights[0].mean(dim=0).float()
    scale = matrix.quantile(0.995) if matrix.numel() < 1_000_000 else matrix.max()
    level = (matrix / scale.clamp(min=1e-9)).clamp(0, 1).sqrt()
    grey = Image.fromarray((level * 255).round().to(torch.uint8).numpy())
    times = max(1, 432 // max(grey.size))
    return grey.resize((grey.width * times, grey.height * times), Image.Resampling.NEAREST)


def entries() -> list[tuple[str, str, Callable[[type], Tensor]]]:
    """Module, class, and how its weights are made."""
    x = patches()
    grid, text = (SIDE, SIDE), x[:, ::6]
    image = (torch.arange(x.shape[1]) >= 24)[None] & (torch.arange(x.shape[1]) < 120)[None]
    pixels = x.new_tensor(np.asarray(photos(96, 96))).permute(2, 0, 1)[None] / 128 - 1
    return [
        ("scaled", "MultiHeadAttention", lambda c: made(c(DIM, HEADS)).weights(x)),
        ("scaled", "TransformerBlock", lambda c: made(c(DIM, HEADS, 96)).weights(x)),
        ("vision", "VisionTransformer", lambda c: made(c(96, 8, DIM, 2, HEADS, 96, registers=4)).weights(pixels, 0)),
        ("window", "WindowAttention", lambda c: made(c(DIM, HEADS, 4)).weights(x, grid)),
        ("window", "SwinBlock", lambda c: made(c(DIM, HEADS, 4, 96, 2)).weights(x, grid)),
        ("hybrid", "HybridBlock", lambda c: made(c(DIM, HEADS, 4, 96)).weights(x, grid)),
        ("cross", "CrossAttention", lambda c: made(c(DIM, HEADS)).weights(text, x)),
        ("cross", "GatedCrossAttentionBlock", lambda c: made(c(DIM, HEADS, 96)).weights(text, x)),
        ("resampler", "PerceiverResampler", lambda c: made(c(DIM, HEADS, 16, 2, 96)).weights(x)),
        ("perceiver", "Perceiver", lambda c: made(c(DIM, DIM, 16, HEADS, 1)).weights(x)),
        ("qformer", "QFormer", lambda c: made(c(DIM, HEADS, 2, 96, encoder_dim=DIM)).weights(None, x)),
        ("expert", "VisualExpertAttention", lambda c: made(c(DIM, HEADS)).weights(x, image)),
        ("expert", "VisualExpertBlock", lambda c: made(c(DIM, HEADS, 96)).weights(x, image)),
        ("peripheral", "PeripheralAttention", lambda c: made(c(DIM, HEADS, grid)).weights(x)),
        ("linear", "LinearAttention", lambda c: made(c(DIM, HEADS, causal=True)).weights(x)),
        ("delta", "DeltaAttention", lambda c: made(c(DIM, HEADS)).weights(x)),
        ("sliding", "SlidingWindowAttention", lambda c: made(c(DIM, HEADS, 24)).weights(x)),
        ("block_sparse", "BlockSparseAttention", lambda c: made(c(DIM, HEADS, SIDE * SIDE, 12)).weights(x)),
        ("topk", "TopKAttention", lambda c: made(c(DIM, HEADS, 12)).weights(x)),
    ]


def page() -> str:
    """The document, from the docstrings; the pictures are beside it."""
    parts = [HEAD.format(tokens=SIDE * SIDE)]
    before = ""
    for name, kind, _ in entries():
        module = import_module(f"regard.attention.{name}")
        if name != before:
            text = inspect.cleandoc(module.__doc__ or "")
            title, _, rest = text.partition("\n")
            parts.append(f"## {name.replace('_', ' ')}\n\n{title}\n{rest}\n")
        before = name
        about = inspect.cleandoc(getattr(module, kind).__doc__ or "")
        parts.append(f"**`{kind}`**: {about}\n\n![{kind}](attention/{kind}.png)\n")
    return generated("\n".join([*parts, TAIL]), Path("results"))


def main() -> None:
    """Write docs/attention.md and docs/attention/CLASS.png."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, kind, weights in entries():
        with torch.no_grad():
            drawn(weights(getattr(import_module(f"regard.attention.{name}"), kind))).save(FOLDER / f"{kind}.png")
        print(kind)
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
