"""What is drawn for asked scenes: simple shapes, signs, notes, and things dyed in a colour that is known."""

from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from regard.bench.tasks.asked.wording import COLOURS
from regard.bench.tasks.cutouts import trimmed

TEXT = (15, 44)  # pixels, of a line of text
DYED = frozenset(
    "backpack balloon bell bicycle book boot bucket bus butterfly candle cap car chair crown dress drum guitar "
    "handbag key kite padlock present saxophone sneaker t-shirt telephone train truck trumpet turtle umbrella".split()
)

_RGB: dict[str, tuple[int, int, int]] = dict(
    zip(
        COLOURS,
        (
            (205, 35, 40),
            (240, 125, 20),
            (245, 212, 45),
            (40, 140, 60),
            (35, 85, 205),
            (120, 50, 165),
            (245, 245, 242),
            (28, 28, 30),
        ),
        strict=True,
    )
)
_JITTER = (12, 4)  # of 255, up or down: all channels together, and each
_FINE = 256  # pixels, of a shape before it is made small


def shade(rng: np.random.Generator, colour: str) -> np.ndarray:
    """A little lighter or darker than the colour's own, float (3,), 0 to 255."""
    together, each = (rng.integers(-most, most + 1, count) for most, count in zip(_JITTER, (1, 3), strict=True))
    return np.clip(np.array(_RGB[colour]) + together + each, 0, 255).astype(float)


def shape(rng: np.random.Generator, name: str, colour: str) -> Image.Image:
    """A simple shape of SHAPES in a colour, RGBA."""
    image = Image.new("RGB", (_FINE, _FINE), _whole(shade(rng, colour)))
    image.putalpha(_outline(name))
    return trimmed(image)


def dyed(rng: np.random.Generator, image: Image.Image, colour: str) -> Image.Image:
    """A picture in shades of one colour, RGBA."""
    pixels = np.asarray(image)
    grey = pixels[..., :3].astype(float) @ np.array([0.299, 0.587, 0.114])
    low, high = np.percentile(grey[pixels[..., 3] > 127], (3, 97))
    light = np.clip((grey - low) / max(1.0, high - low), 0, 1)[..., None]
    base = shade(rng, colour)
    if colour == "black":
        out = base * 0.3 + 62 * light
    elif colour == "white":
        out = base * (0.8 + 0.2 * light)
    else:
        out = base * (0.5 + 0.6 * light)
    rgba = np.concatenate([np.clip(out, 0, 255).round(), pixels[..., 3:]], axis=2)
    return Image.fromarray(rgba.astype(np.uint8))


def sign(rng: np.random.Generator, text: str, colour: str, widest: int) -> Image.Image:
    """A word or number on a plate of a colour, at most so many pixels wide, RGBA."""
    height = round(TEXT[0] * (TEXT[1] / TEXT[0]) ** rng.random())  # small ones are as likely as large ones
    text = (text, text.upper(), text.capitalize())[int(rng.integers(3))]
    font, bold = _font(height), int(rng.integers(2)) * max(1, height // 24)
    left, top, right, bottom = font.getbbox(text, stroke_width=bold)
    pad = max(4, round(height * rng.uniform(0.3, 0.7)))
    size = (round(right - left) + 2 * pad, round(bottom - top) + 2 * pad)
    image, ink = _plate(rng, size, colour)
    draw = ImageDraw.Draw(image)
    draw.text((pad - left, pad - top), text, font=font, fill=ink, stroke_width=bold, stroke_fill=ink)
    if image.width > widest:
        image = image.resize((widest, round(image.height * widest / image.width)), Image.Resampling.LANCZOS)
    return image


def note(rng: np.random.Generator, digit: np.ndarray, colour: str) -> Image.Image:
    """A digit written by hand, uint8 (28, 28), on a plate of a colour, RGBA."""
    side = int(rng.integers(40, 97))
    image, ink = _plate(rng, (side, side), colour)
    written = Image.fromarray(digit).resize((side - 4, side - 4), Image.Resampling.BICUBIC)
    image.paste(ink, (2, 2), written)
    return image


def _plate(rng: np.random.Generator, size: tuple[int, int], colour: str) -> tuple[Image.Image, tuple[int, ...]]:
    """An empty plate with round corners and the colour of what is written on it."""
    base = shade(rng, colour)
    fine = Image.new("L", (4 * size[0], 4 * size[1]))
    ImageDraw.Draw(fine).rounded_rectangle((0, 0, fine.width - 1, fine.height - 1), 12, fill=255)
    image = Image.new("RGB", size, _whole(base))
    image.putalpha(fine.resize(size, Image.Resampling.BOX))
    return image, (15, 15, 15, 255) if base @ [0.299, 0.587, 0.114] > 120 else (250, 250, 250, 255)


@cache
def _font(height: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(height)


@cache
def _outline(name: str) -> Image.Image:
    """The alpha of a shape of SHAPES."""
    fine = Image.new("L", (2 * _FINE, 2 * _FINE))
    draw, far = ImageDraw.Draw(fine), 2 * _FINE - 1
    if name == "circle":
        draw.ellipse((0, 0, far, far), fill=255)
    else:
        draw.polygon([(float(x * far), float(y * far)) for x, y in _corners(name)], fill=255)
    return fine.resize((_FINE, _FINE), Image.Resampling.BOX)


def _corners(name: str) -> np.ndarray:
    """Of a shape with straight sides (a heart has many), (N, 2) in [0, 1]."""
    if name == "heart":
        t = np.linspace(0, 2 * np.pi, 200)
        x = 16 * np.sin(t) ** 3
        y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
        return np.stack([x / 34 + 0.5, 0.42 - y / 34], axis=1)
    if name == "star":
        angle = np.arange(10) * np.pi / 5
        radius = np.where(np.arange(10) % 2, 0.21, 0.5)
        return np.stack([0.5 + radius * np.sin(angle), 0.5 - radius * np.cos(angle)], axis=1)
    given = {
        "square": [(0, 0), (1, 0), (1, 1), (0, 1)],
        "triangle": [(0.5, 0), (1, 0.87), (0, 0.87)],
        "diamond": [(0.5, 0), (0.85, 0.5), (0.5, 1), (0.15, 0.5)],
        "cross": [(int(a) / 3, int(b) / 3) for a, b in "10 20 21 31 32 22 23 13 12 02 01 11".split()],
    }
    return np.array(given[name], float)


def _whole(colour: np.ndarray) -> tuple[int, ...]:
    return tuple(int(value) for value in colour)
