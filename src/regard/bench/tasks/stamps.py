"""Things cut out of photos, from Debian's package tuxpaint-stamps-default (GPL-2+).

Which of its pictures are taken: those whose sentence is "A bison." or, with words that only describe, "A big brown
bear.": one or two plain words remain, the name (some are called what people call them). The picture is RGBA, at least
SMALLEST pixels a side, and looks like a photo of a thing: a soft edge, but not much that is half see-through (shadows,
wings); many colours; not too thin; not nearly white all over. Folders of drawings, signs, trees and people are left
out, and what was seen to be a drawing, badly cut out, known to few or of the wrong colour: _LEFT_OUT.
"""

import io
import re
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from regard.bench.tasks.cutouts import CutOut, trimmed
from regard.bench.tasks.debian import Package

PACKAGE = Package(
    "tuxpaint-stamps-default", "2022.06.04-1", "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34"
)
SMALLEST = 90  # pixels, of the longest side

ROOT = "./usr/share/tuxpaint/stamps/"
_FOLDERS = re.compile(r"^(animals|food|hobbies|household|medical|plants/(flowers|mushrooms)|sports|town|vehicles)/")
_DRAWN = re.compile(r"/(cartoon|plastic|flags|houses|monuments|toys)/")
_SENTENCE = re.compile(r"An? ([a-z]+(?: [a-z]+)*)[.!]?")
_DESCRIBING = set(
    "red green yellow blue brown black white pink purple silver little small big large huge great colorful very male "
    "ripe modern dry sleeping poisonous".split()
)
_RENAMED = {
    "doe": "deer",
    "drake": "duck",
    "dromedary": "camel",
    "gander": "goose",
    "cep": "mushroom",
    "headed cep": "mushroom",
    "rhino": "rhinoceros",
    "metal mallet": "mallet",
    "electric kettle": "kettle",
    "garden spade": "spade",
    "adhesive bandage": "bandage",
    "trophy cup": "trophy",
    "sedan car": "car",
    "lightbulb": "light bulb",
    "avocado fruit": "avocado",
    "eared rabbit": "rabbit",
    "european bear": "bear",
    "mandarin orange": "orange",
    "rainbow lorikeet": "parrot",
}
_LEFT_OUT = set(
    # drawings, badly cut out, or as thin as a line
    "button hedgehog pizza mercurythermometer wrench_adjustable tamarin_emperor paintbrush_large chilepepper plyers "
    # of the wrong colour
    "butterflyfish clownfish coraltrout dolphinfish moonwrasse stripedfish "
    # known to few, or only with another name
    "abalone cherimoya cuckoo fly gnu-sitting kiwi lark mountaingoat murray-mussel nandou pigface quetzal wapiti "
    "xanthia yam zebu guineafowl crowned_crane bassoon walnutBoat dingo cymbal_crash drumkit iris Woodlouse cylinder "
    # with words on them, or in other pictures too
    "toolbox railroad_crossing usps_mailbox pen_dryerase wheel_tractor".split()
)


@cache
def stamps(package: Path | None = None) -> tuple[CutOut, ...]:
    """All that are taken, by name. package: the .deb, fetched where there is none. Raises DataError."""
    files = PACKAGE.files(lambda path: path.endswith((".png", ".txt")), package)
    found = []
    for path, data in files.items():
        stem = path.removeprefix(ROOT).removesuffix(".txt")
        picture = files.get(f"{ROOT}{stem}.png")
        if path.endswith(".txt") and picture is not None and (name := named(stem, data.decode("utf-8", "replace"))):
            image = Image.open(io.BytesIO(picture))
            if is_photo(image):
                found.append(CutOut(name, f"stamps/{stem}", trimmed(image)))
    return tuple(sorted(found, key=lambda cut: cut[:2]))


def named(stem: str, text: str) -> str:
    """What is on the stamp, by the first line of its text, or nothing where it is left out."""
    if not _FOLDERS.match(stem) or _DRAWN.search(f"/{stem}") or stem.rsplit("/", 1)[-1] in _LEFT_OUT:
        return ""
    sentence = _SENTENCE.fullmatch(text.split("\n", 1)[0].strip())
    words = sentence[1].split() if sentence else []
    while words and words[0] in _DESCRIBING:
        words.pop(0)
    name = " ".join(words)
    return _RENAMED.get(name, name) if len(words) <= 2 and name != "flower" else ""


def is_photo(image: Image.Image) -> bool:
    """Whether it looks like a photo of one thing, cut out."""
    if image.mode != "RGBA" or max(image.size) < SMALLEST:
        return False
    image = trimmed(image)
    alpha = np.asarray(image.getchannel("A"))
    soft = ((alpha > 10) & (alpha < 245)).sum() / (alpha > 10).sum()
    if not 0.005 <= soft <= 0.3 or (alpha > 127).mean() < 0.12 or max(image.size) > 4 * min(image.size):
        return False
    small = image.copy()
    small.thumbnail((128, 128))
    pixels = np.asarray(small).reshape(-1, 4).astype(int)
    pixels = pixels[pixels[:, 3] > 200, :3]
    shades = len(np.unique(pixels // 8 @ [1, 32, 1024])) / max(1, len(pixels))
    return shades >= 0.015 and pixels.mean() < 225
