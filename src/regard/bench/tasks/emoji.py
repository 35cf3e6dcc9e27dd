"""Drawn things: colour emoji of Noto, from Debian's package fonts-noto-color-emoji (OFL-1.1).

Named by Unicode, or by what people call them where Unicode says otherwise.
"""

import io
import unicodedata
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from regard.bench.tasks.cutouts import CutOut, trimmed
from regard.bench.tasks.debian import Package

PACKAGE = Package(
    "fonts-noto-color-emoji", "2.042-0+deb12u1", "a5ab0f69c7938423862320d9aca5dd187b3fd879d6a9a57dd52e17c3fa8d2751"
)
SIZE = 109  # the only one that the font has

ANIMALS = (
    "🐒🦍🦧🐕🐩🐈🐅🐆🐎🦬🐂🐃🐄🐖🐏🐑🐐🐪🐫🦙🐘🦏🦛🐁🐀🐇🦫🦔🦇🦥🦦🦨🦘🦡🦃🐓🐧🕊🦅🦆"
    "🦢🦉🦩🦚🦜🐊🐢🦎🐍🐋🐬🦭🦈🐙🐌🦋🐜🐝🐞🕷🦂🦀🦞🦑🐉🦕"
)
FOOD = "🍈🍉🍊🍋🍌🍍🥭🍎🍐🍑🍓🥝🍅🥥🥑🍆🥔🥕🌽🥒🧅🍄🥐🥖🥨🥩🍔🍕🌭🥪🌮🥚🍦🍩🍪🎂🧁🥧🍭🍷🍺"
OBJECTS = (
    "⚽🏀🏈🎾⚾🏐🎸🎺🎻🥁🎷🪕☂🎈🎁🧸🔑🔒🔨🪓🪚🔧🪛🧲🪜🔬🔭💡🔦🕯📕✏🗑📷📺📻☎💻⏰⌚"
    "⌛🎒👜👑🎩👟👢👗👕🧢💍🏆🪑🛏🚽🛁🧹🪣🧯⚓🪁🪃🔔🧭🧮🩺🛡🌵"
)
VEHICLES = "🚗🚕🚌🚓🚑🚒🚚🚜🚲🛵🏍🛴🚂🚁✈🚀⛵🚢🛶🛸🛹"

_RENAMED = {
    "dromedary camel": "camel",
    "bactrian camel": "camel",
    "dove of peace": "dove",
    "honeybee": "bee",
    "lady beetle": "ladybug",
    "sauropod": "dinosaur",
    "red apple": "apple",
    "aubergine": "eggplant",
    "kiwifruit": "kiwi",
    "ear of maize": "corn cob",
    "baguette bread": "baguette",
    "cut of meat": "steak",
    "slice of pizza": "pizza",
    "soft ice cream": "ice cream",
    "basketball and hoop": "basketball",
    "tennis racquet and ball": "tennis racket",
    "drum with drumsticks": "drum",
    "wrapped present": "present",
    "lock": "padlock",
    "carpentry saw": "saw",
    "electric light bulb": "light bulb",
    "electric torch": "flashlight",
    "closed book": "book",
    "black telephone": "telephone",
    "personal computer": "laptop",
    "school satchel": "backpack",
    "athletic shoe": "sneaker",
    "womans boots": "boot",
    "billed cap": "cap",
    "automobile": "car",
    "fire engine": "fire truck",
    "delivery truck": "truck",
    "motor scooter": "moped",
    "racing motorcycle": "motorcycle",
    "steam locomotive": "train",
}


@cache
def emoji(package: Path | None = None) -> tuple[CutOut, ...]:
    """All of them, by name. package: the .deb, fetched where there is none. Raises DataError."""
    files = PACKAGE.files(lambda path: path.endswith("/NotoColorEmoji.ttf"), package)
    font = ImageFont.truetype(io.BytesIO(next(iter(files.values()))), SIZE)
    found = [CutOut(called(char), f"emoji/{char}", drawn(char, font)) for char in ANIMALS + FOOD + OBJECTS + VEHICLES]
    return tuple(sorted(found, key=lambda cut: cut[:2]))


def called(char: str) -> str:
    """What people call the thing."""
    name = unicodedata.name(char).lower()
    return _RENAMED.get(name, name)


def drawn(char: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """The emoji alone, RGBA."""
    image = Image.new("RGBA", (160, 160))
    ImageDraw.Draw(image).text((8, 8), char, font=font, embedded_color=True)
    return trimmed(image)
