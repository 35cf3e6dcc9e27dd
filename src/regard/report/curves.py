"""A run's loss and accuracy over its epochs, as a PNG."""

import io
from collections.abc import Sequence

from regard.errors import ModelError


def curves(history: Sequence[dict[str, float]]) -> bytes:
    """Draw them side by side. history: rows with epoch, loss and accuracy. Raises ModelError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModelError("drawing curves needs matplotlib: pip install 'regard[plot]'") from error
    figure = Figure(figsize=(8, 3), layout="constrained")
    epochs = [row["epoch"] for row in history]
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        axes.plot(epochs, [row[name] for row in history])
        axes.set(xlabel="epoch", title=f"{name} in training")
        axes.grid(alpha=0.3)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    return file.getvalue()
