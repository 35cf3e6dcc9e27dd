"""Whether the heads of attention fit together, and whether each does something of its own.

Sizes of the projections against heads x head size; the scale of the products, head size ** -0.5 where a configuration
says no other (Vaswani et al., arXiv 1706.03762); which query heads share a key head: consecutive ones (GQA, arXiv
2305.13245). A head is dead where it adds next to nothing to what its layer gives, and a duplicate where it gives the
same weights as another to every token (most heads can go: Michel et al., arXiv 1905.10650).
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from regard.doctor.case import Case
from regard.doctor.finding import Finding, listed
from regard.doctor.kernel import Kernel, Reading
from regard.doctor.parts import PARTS, AttentionLayer, attention_layers, output_map
from regard.doctor.watch import watching
from regard.errors import ModelError

_DEAD = 1e-3  # of the median head's share
_SAME = 1e-3
_SCALES = ("query_pre_attn_scalar", "attention_multiplier")
_ROWS = 32


def check(case: Case) -> list[Finding]:
    """Sizes as they are written; scale, sharing and worth as they are seen in a run, where there are inputs."""
    layers = _layers(case.model)
    found = [finding for layer in layers for finding in _sizes(layer)]
    if not case.runs:
        return found or [case.without("heads")]
    return [*found, *_run(case, layers if case.images else [x for x in layers if x.part == "language"] or layers)]


def _layers(model: nn.Module) -> list[AttentionLayer]:
    found = []
    for part in PARTS:
        try:
            found += attention_layers(model, part)
        except ModelError:
            continue  # most models lack some parts
    if not found:
        attention_layers(model, "language")  # says what there is
    return found


def _error(evidence: str, advice: str) -> Finding:
    return Finding("heads", "error", evidence, advice)


def _sizes(layer: AttentionLayer) -> list[Finding]:
    """What a layer says of itself against its weights."""
    module: Any = layer.module
    q, k = (_rows(getattr(module, name, None)) for name in ("q_proj", "k_proj"))
    config = getattr(module, "config", None)
    size = getattr(module, "head_dim", None)
    if not isinstance(size, int) or not q or not k:
        return []
    found = []
    heads = getattr(module, "num_heads", None) or getattr(config, "num_attention_heads", None)
    keys = getattr(module, "num_key_value_heads", None) or getattr(config, "num_key_value_heads", None) or heads
    group = getattr(module, "num_key_value_groups", None)
    if layer.part == "language" and isinstance(heads, int) and isinstance(keys, int):
        if q % (heads * size) or k != keys * size:
            said = f"{heads} heads and {keys} key heads of {size}"
            found.append(f"{layer.name} is said to have {said}, and its projections give {q} and {k}")
        elif heads % keys or (isinstance(group, int) and group * keys != heads):
            found.append(f"{layer.name} lets {group} of its {heads} heads share each of {keys} key heads")
    return [_error(text, "make heads, key heads and head size fit: heads = groups x key heads") for text in found]


def _rows(module: Any) -> int:
    features = getattr(module, "out_features", None)
    return features if isinstance(features, int) else 0


def _run(case: Case, layers: list[AttentionLayer]) -> list[Finding]:
    seen = _Heads()
    with torch.no_grad(), watching(layers, seen.tell):
        case.run()
    if not seen.told:
        raise ModelError(
            f"the attention of {layers[0].name} ({type(layers[0].module).__name__}) cannot be reached: it calls "
            "neither torch's scaled_dot_product_attention nor a softmax"
        )
    unseen = [layer.name for layer in layers if layer.name not in seen.told]
    return [*seen.found(), *_unseen(unseen)]


def _unseen(names: list[str]) -> list[Finding]:
    if not names:
        return []
    reason = (
        f"the attention of {listed(names)} was not reached: it did not run, or its kernel does not show what it does"
    )
    return [Finding("heads", "skipped", reason, "model.set_attn_implementation('sdpa') and check again")]


class _Heads:
    """What is seen of the heads of each layer as it runs."""

    def __init__(self) -> None:
        self.told: set[str] = set()
        self.scales: list[str] = []
        self.paired: list[str] = []
        self.dead: list[str] = []
        self.same: list[str] = []
        self.count = 0

    def tell(self, layer: AttentionLayer, reading: Reading) -> None:
        if layer.name in self.told:
            return
        self.told.add(layer.name)
        kernel = reading.kernels[0]
        self._scale(layer, kernel)
        if kernel.weights is None:
            self._pairs(layer, kernel)
        self._worth(layer, kernel)

    def _scale(self, layer: AttentionLayer, kernel: Kernel) -> None:
        module: Any = layer.module
        eager, config = kernel.weights is not None, getattr(module, "config", None)
        size = getattr(module, "head_dim", None) if eager else kernel.q.shape[-1]
        scale = getattr(module, "scaling", None) if eager else kernel.scale
        if not isinstance(size, int) or not isinstance(scale, float):
            return
        wanted = size**-0.5 * _stretched(config)
        for name in _SCALES:
            if (value := getattr(config, name, None)) is not None:
                wanted = value if name == "attention_multiplier" else value**-0.5
        before = getattr(module, "scaling", None) == wanted  # queries that were scaled, as OPT's
        meant = scale == 1 and (before or layer.part != "language" or hasattr(module, "q_norm"))
        if not math.isclose(scale, wanted, rel_tol=1e-3) and not meant:
            self.scales.append(f"{layer.name} scales by {scale:.4g}, and heads of {size} by {wanted:.4g}")

    def _pairs(self, layer: AttentionLayer, kernel: Kernel) -> None:
        """Query heads that share keys stand together."""
        module: Any = layer.module
        heads, keys = kernel.q.shape[1], getattr(module, "num_key_value_groups", 1)
        if not isinstance(keys, int) or keys < 2 or kernel.k.shape[1] != heads or heads % keys:
            return
        grouped = kernel.k.unflatten(1, (heads // keys, keys))
        if heads // keys > 1 and not torch.equal(grouped, grouped[:, :, :1].expand_as(grouped)):
            self.paired.append(f"{layer.name}: heads 0 to {keys - 1} do not share one key head")

    def _worth(self, layer: AttentionLayer, kernel: Kernel) -> None:
        """What each head adds, and whether two attend alike."""
        batch, heads, queries, _ = kernel.shape
        self.count += heads
        index = torch.linspace(0, queries - 1, min(_ROWS, queries)).long().to(kernel.out.device)
        rows = kernel.rows(index.expand(batch, -1))
        given = _given(layer.module, kernel, index, heads)
        if given is not None:
            median = float(given.median())
            gone = (given <= _DEAD * median).nonzero()[:, 0].tolist()
            self.dead += [f"{layer.name} head {head}" for head in gone]
        self.same += [f"{layer.name} heads {a} and {b}" for a, b in _alike(rows)]

    def found(self) -> list[Finding]:
        mend = "divide by the square root of the head size, not of the width, and once only"
        pair = "repeat each key head for consecutive query heads (repeat_interleave), not all of them in turn (repeat)"
        found = [_error(listed(self.scales, 2), mend)] if self.scales else []
        found += [_error(listed(self.paired, 2), pair)] if self.paired else []
        if self.dead:
            evidence = f"{len(self.dead)} of {self.count} heads add nothing: {listed(self.dead)}"
            advice = "see whether they were pruned, or their weights were not loaded; heads that died can be cut out"
            found.append(Finding("heads", "warning", evidence, advice))
        if self.same:
            evidence = f"{len(self.same)} pairs of heads attend alike: {listed(self.same)}"
            advice = "see whether their weights were copied or tied by mistake; one of each pair can be cut out"
            found.append(Finding("heads", "warning", evidence, advice))
        return found


def _stretched(config: Any) -> float:
    """What YaRN's mscale_all_dim adds to the scale, as DeepSeek's models have it (arXiv 2309.00071, 2412.19437)."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    every, factor = rope.get("mscale_all_dim"), rope.get("factor")
    return (0.1 * every * math.log(factor) + 1) ** 2 if every and factor and factor > 1 else 1.0


def _given(module: nn.Module, kernel: Kernel, index: Tensor, heads: int) -> Tensor | None:
    """(H,), the size of what each head adds to the layer's output; None where that map is not known."""
    out = output_map(module)
    if not isinstance(out, nn.Linear) or kernel.weights is not None or out.in_features != heads * kernel.out.shape[-1]:
        return None
    parts = kernel.out[:, :, index.clamp(max=kernel.out.shape[2] - 1)].float()
    weight = out.weight.detach().float().unflatten(1, (heads, -1))
    return torch.stack([(parts[:, head] @ weight[:, head].T).norm() for head in range(heads)])


def _alike(rows: Tensor) -> list[tuple[int, int]]:
    """Pairs of heads whose rows are, but for rounding, the same. rows: (B, H, R, K)."""
    seen = rows > 0
    even = seen / seen.sum(dim=-1, keepdim=True).clamp(min=1)
    own = (rows - even).transpose(0, 1).flatten(1)  # what is of the head, and not of the mask
    size = own.norm(dim=1)
    gap = torch.cdist(own, own, compute_mode="donot_use_mm_for_euclid_dist")
    near = (gap <= _SAME * torch.minimum(size[:, None], size)) & (torch.minimum(size[:, None], size) > 1e-6)
    return [(a, b) for a, b in near.triu(1).nonzero().tolist()]
