"""Things cut out of their pictures, with names: what they are called, which go together, and in which half they are."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from PIL import Image

LARGEST = 256  # pixels, the longest side that is kept

# Names that fit one picture, or that a person may mix up: they never stand in one scene, and are in one half.
_KIN = {
    kin: names.split(", ")
    for kin, names in {
        "airplane": "helicopter, rocket",
        "bat": "flying fox",
        "bear": "teddy bear, polar bear",
        "beaver": "marmot, capybara, otter, ferret",
        "bee": "hornet",
        "bicycle": "tricycle, motorcycle, scooter, moped",
        "baguette": "croissant",
        "cake": "birthday cake, cupcake, pie",
        "car": "sports car, taxi, police car",
        "cheetah": "leopard, jaguar",
        "chicken": "hen, rooster, turkey",
        "clock": "alarm clock, watch, compass",
        "cow": "bull, ox, yak, water buffalo, bison, gnu, calf",
        "crow": "blackbird, magpie",
        "deer": "caribou, moose",
        "dog": "poodle",
        "dolphin": "orca, whale, shark",
        "duck": "rubber duck",
        "eagle": "vulture, northern harrier",
        "garbage can": "wastebasket, bucket",
        "goat": "nubian ibex",
        "goose": "gosling, swan",
        "guitar": "electric guitar, classical guitar, banjo",
        "hammer": "mallet",
        "hat": "cap, top hat, crown",
        "horse": "donkey",
        "light bulb": "flashlight",
        "lizard": "iguana, chameleon, komodo dragon",
        "llama": "alpaca",
        "monkey": "chimpanzee, orangutan, gibbon, macaque, long-nosed monkey",
        "mouse": "rat",
        "orange": "tangerine, apricot, peach, mango",
        "parrot": "scarlet macaw",
        "pigeon": "dove, seagull",
        "rose": "daffodil, marigold",
        "seal": "sea lion",
        "sheep": "ram",
        "ship": "sailboat, canoe",
        "slug": "snail",
        "truck": "pickup truck, garbage truck, fire truck, ambulance, bus, cement mixer",
        "violin": "cello",
        "watermelon": "melon",
    }.items()
}
_KIN_OF = {name: kin for kin, names in _KIN.items() for name in names}

_PLURALS = {"mouse": "mice", "goose": "geese", "ox": "oxen", "scarf": "scarves"}
_SAME = ("sheep", "deer", "bison", "moose", "squid", "shrimp")
_CONSONANT_O = ("potato", "tomato", "mango", "mosquito", "water buffalo")


class CutOut(NamedTuple):
    """A thing and its name: RGBA, no larger than its opaque part, at most LARGEST pixels a side."""

    name: str
    source: str
    image: Image.Image

    @property
    def kin(self) -> str:
        """The same for two names that fit one picture: they never stand in one scene, and are in one half."""
        return kin_of(self.name)


def kin_of(name: str) -> str:
    """The name that stands for all that a person may mix up with it."""
    return _KIN_OF.get(name, name)


def trimmed(image: Image.Image) -> Image.Image:
    """The part of a picture that is not see-through, at most LARGEST pixels a side; RGBA."""
    rgba = image.convert("RGBA")
    rgba = rgba.crop(rgba.getchannel("A").point([0] * 8 + [255] * 248).getbbox())
    rgba.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    return rgba


def half_of(cutouts: Iterable[CutOut], half: str, photos: dict[str, set[str]]) -> list[CutOut]:
    """The cut-outs of one half: names of one kin together, where the photos have their kin, and else every other one.

    photos: the names of the photos in each half, "tune" and "report".
    """
    ordered = sorted(cutouts, key=lambda cut: (cut.name, cut.source))
    fixed = {kin_of(name): where for where in ("report", "tune") for name in photos[where]}
    free = sorted({cut.kin for cut in ordered} - fixed.keys())
    fixed |= {kin: ("tune", "report")[place % 2] for place, kin in enumerate(free)}
    return [cut for cut in ordered if fixed[cut.kin] == half]


def plural(name: str) -> str:
    """Several of them: foxes, mice, light bulbs."""
    if name in _PLURALS or name in _SAME or name.endswith("fish"):
        return _PLURALS.get(name, name)
    if name.endswith(("s", "x", "ch", "sh")) or name in _CONSONANT_O:
        return name + "es"
    if name.endswith("y") and name[-2] not in "aeiou":
        return name[:-1] + "ies"
    return name + "s"


def one(name: str) -> str:
    """One of them: a cat, an apple, an hourglass."""
    return f"{'an' if name[0] in 'aeio' or name in ('umbrella', 'hourglass') else 'a'} {name}"


def solid(image: Image.Image) -> np.ndarray:
    """Where a picture is more than half opaque, bool (height, width)."""
    return np.asarray(image.getchannel("A")) > 127
