"""What heads are worth, as a picture: a row for each layer, a column for each head."""

import io
from collections.abc import Mapping

from regard.errors import ModelError


def heads_map(bits: Mapping[tuple[int, int], float], by: str) -> bytes:
    """A PNG of the change in bits without each head, red where answers are less likely. bits: of (layer, head). by:
    what took the place of a head. Raises ModelError without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModelError("drawing heads needs matplotlib: pip install 'regard[plot]'") from error
    layers, heads = (sorted({place[axis] for place in bits}) for axis in (0, 1))
    values = [[bits.get((layer, head), float("nan")) for head in heads] for layer in layers]
    most = max(map(abs, bits.values())) or 1.0
    figure = Figure(figsize=(2.5 + 0.4 * len(heads), 1.6 + 0.3 * len(layers)), layout="constrained")
    axes = figure.subplots()
    drawn = axes.imshow(values, cmap="RdBu", vmin=-most, vmax=most, aspect="auto")
    axes.set(xlabel="head", ylabel="layer", title=f"bits without a head ({by} in its place)")
    axes.set_xticks(range(len(heads)), list(map(str, heads)), fontsize=7)
    axes.set_yticks(range(len(layers)), list(map(str, layers)), fontsize=7)
    figure.colorbar(drawn, ax=axes)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()
