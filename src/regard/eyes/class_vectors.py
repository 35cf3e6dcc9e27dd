"""The data files of the embedded eye: the words of ImageNet's 1000 classes and their MiniLM vectors.

imagenet_classes.tsv has a line for each class, in the classifier's order: its WordNet 3.0 synset, its names, the names
of its direct hypernym ("horse" for "sorrel") and its definition. imagenet_classes.safetensors is made from it by
`python -m regard.eyes.class_vectors`: the mean of the unit vectors of all these texts, of length 1.
"""

from importlib import resources
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from regard.eyes.minilm import MiniLM

FOLDER = Path(str(resources.files("regard.eyes")))


class Class(NamedTuple):
    """One of the classes, in WordNet's words."""

    synset: str
    names: tuple[str, ...]
    kinds: tuple[str, ...]
    definition: str

    def vector(self, text: MiniLM) -> Float[Tensor, " 384"]:
        """The mean of its texts' vectors, of length 1."""
        texts = dict.fromkeys([*self.names, *self.kinds, self.definition])
        return F.normalize(torch.stack([text.embed(each) for each in texts]).mean(dim=0), dim=0)


def classes() -> list[Class]:
    """The 1000 classes, in the classifier's order."""
    lines = (FOLDER / "imagenet_classes.tsv").read_text().splitlines()[1:]
    rows = (line.split("\t") for line in lines)
    return [Class(row[0], tuple(row[1].split("; ")), tuple(row[2].split("; ")), row[3]) for row in rows]


def class_vectors() -> Float[Tensor, "1000 384"]:
    """The vectors as they were saved, in float16."""
    return load_file(FOLDER / "imagenet_classes.safetensors")["vectors"].float()


if __name__ == "__main__":
    encoder = MiniLM.installed()
    with torch.no_grad():
        vectors = torch.stack([each.vector(encoder) for each in classes()])
    save_file({"vectors": vectors.half()}, FOLDER / "imagenet_classes.safetensors")
