"""Looking into a model: what its attention does, and what is wrong with it."""

from regard.doctor.capture import capture
from regard.doctor.pixels import pixel_map
from regard.doctor.rows import Rows, Seen

__all__ = ["Rows", "Seen", "capture", "pixel_map"]
