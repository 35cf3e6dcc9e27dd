"""What `regard.capture` must give: the weights that modules return under the eager kernel."""

from typing import Any

import torch
from torch import Tensor, nn

from regard.doctor import Seen


def eager_weights(model: nn.Module, names: list[str], run: Any) -> dict[str, Tensor]:
    """The second output of these modules while `run` is called."""
    found: dict[str, Tensor] = {}

    def keep(name: str, out: Any) -> None:
        found[name] = out[1]

    handles = [
        model.get_submodule(name).register_forward_hook(lambda m, args, out, n=name: keep(n, out)) for name in names
    ]
    with torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    return found


def furthest(seen: Seen, reference: dict[int, Tensor] | tuple, call: int = 0) -> float:
    """The largest difference of a captured row from the same row of the whole matrices, (B, H, S, S')."""
    worst = 0.0
    for place, layer in enumerate(seen.layers):
        rows = seen.of(layer, call)
        whole = reference[layer if isinstance(reference, dict) else place][..., : rows.weights.shape[-1]]
        wanted = taken(whole, rows.columns)
        assert rows.weights.shape == wanted.shape
        worst = max(worst, float((rows.weights - wanted).abs().max()))
    return worst


def taken(whole: Tensor, columns: Tensor) -> Tensor:
    """(B, H, R, S), these rows of (B, H, S', S), 0 where the column is -1."""
    rows = [[matrix[:, column] * (column >= 0) for column in own] for matrix, own in zip(whole, columns, strict=True)]
    return torch.stack([torch.stack(row, dim=1) for row in rows])
