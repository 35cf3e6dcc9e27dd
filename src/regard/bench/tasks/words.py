"""Words on plates, as on a sign, in the one font that Pillow brings."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SAYINGS = (
    "OPEN, EXIT, No parking, Platform 9, Room 12, Main Street, Bakery, Mind the gap, Push, Keep left, Bus stop, "
    "Fresh bread, Tickets, Please wait here, Gate 24, Hotel Aurora, Do not touch, Lost and found, Free entry, "
    "Pharmacy, Quiet please, Level 3, Staff only, Wet paint, CLOSED, ENTRANCE, One way, Track 4, Office 31, "
    "Market Square, Bookshop, Watch your step, Pull, Slow down, Taxi rank, Hot coffee, Reception, Ring the bell, "
    "Terminal 2, Cafe Lumen, Beware of the dog, Cloakroom, Sold out, Post office, No smoking, Floor 17, Private, "
    "Sale today"
).split(", ")

HEIGHT = (14, 60)  # pixels, of a line of text
_PLATES = ((250, 250, 245), (20, 60, 140), (15, 95, 50), (170, 25, 30), (245, 205, 40), (25, 25, 28))


def sayings(half: str) -> list[str]:
    """The half's: every other one."""
    return list(SAYINGS[half == "report" :: 2])


def plate(rng: np.random.Generator, saying: str) -> Image.Image:
    """A saying on a plate, which half the time lets a little of what is behind it through; RGBA."""
    height = round(HEIGHT[0] * (HEIGHT[1] / HEIGHT[0]) ** rng.random())  # small ones are as likely as large ones
    font = ImageFont.load_default(height)
    left, top, right, bottom = font.getbbox(saying)
    pad = max(4, height // 3)
    colour = _PLATES[int(rng.integers(len(_PLATES)))]
    opaque = 255 if rng.random() < 0.5 else 190
    ink = (15, 15, 15) if np.mean(colour) > 128 else (250, 250, 250)
    image = Image.new("RGBA", (round(right - left) + 2 * pad, round(bottom - top) + 2 * pad), (*colour, opaque))
    over = Image.new("RGBA", image.size)
    ImageDraw.Draw(over).text((pad - left, pad - top), saying, font=font, fill=(*ink, 255))
    return Image.alpha_composite(image, over)
