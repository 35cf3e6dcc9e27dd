"""Looking into a model: what its attention does, and what is wrong with it."""

from regard.doctor.ablate import Ablation, Effect, ablate
from regard.doctor.capture import capture
from regard.doctor.curves import Curves, compare, curves
from regard.doctor.examine import Examination, examine
from regard.doctor.finding import Finding
from regard.doctor.importance import Importance, importance
from regard.doctor.pixels import pixel_map
from regard.doctor.redistribution import redistributed
from regard.doctor.rows import Rows, Seen
from regard.doctor.training import Watch

__all__ = [
    "Ablation",
    "Curves",
    "Effect",
    "Examination",
    "Finding",
    "Importance",
    "Rows",
    "Seen",
    "Watch",
    "ablate",
    "capture",
    "compare",
    "curves",
    "examine",
    "importance",
    "pixel_map",
    "redistributed",
]
