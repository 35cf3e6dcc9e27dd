"""The pixels of any PIL mode as upright 8-bit RGB: rescaled by their range, through their colour profile, on white."""

import io
import struct
from typing import Any, cast

import numpy as np
from PIL import Image, ImageCms

from regard.errors import ImageError

# What Pillow lets through when content is damaged.
BROKEN = (OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, struct.error)
_BAD_PROFILE = (*BROKEN, AttributeError, ImportError, ImageCms.PyCMSError)

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def one_line(text: str, width: int = 240) -> str:
    """A name or reason from outside, safe to show on one line: escaped if it has anything unprintable, cut if long."""
    shown = text if text.isprintable() else repr(text)
    return shown if len(shown) <= width else f"{shown[: width - 43]}...{shown[-40:]}"


def upright_rgb(image: Image.Image, name: str, orientation: int, notes: list[str]) -> Image.Image:
    """From a loaded image of our own, in any mode; without metadata."""
    profile = image.info.get("icc_profile")
    image = _to_eight_bits(image, name, notes)
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
    elif image.mode not in ("RGB", "CMYK"):
        image = image.convert("RGB")
    if profile:
        image = _to_srgb(image, profile, notes)
    if image.mode == "CMYK":
        image = image.convert("RGB")
        notes.append("CMYK without a usable profile: converted to RGB, colours approximate")
    if image.mode == "RGBA":
        image = _on_white(image, notes)
    if orientation in _TURNS:
        image = image.transpose(_TURNS[orientation])
    image.info = {}
    return image


def _to_eight_bits(image: Image.Image, name: str, notes: list[str]) -> Image.Image:
    """A range that says what it is (0 to 1, 255 or 65535) keeps its scale, so pictures compare; others are stretched.

    So 65535 is white, and 12-bit content in a 16-bit file stays dark.
    """
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    stored = np.asarray(image)
    if not np.isfinite(stored).all():
        raise ImageError(f"{name}: has pixels that are not finite (nan or inf): replace them first")
    values = stored.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    tops = {"I": (255, 65535), "F": (1,)}.get(image.mode, (65535,))
    top = next((top for top in tops if low >= 0 and high <= top), None)
    kind = {"I": "32-bit", "F": "floating point"}.get(image.mode, "16-bit")
    depth = {1: kind, 255: f"{kind}, at most 255", 65535: "16-bit"}.get(top or 0, f"{kind}, {low:g} to {high:g}")
    notes.append(f"{depth}: rescaled to 8")
    low, span = (0, top) if top else (low, (high - low) or 1)
    grey = Image.fromarray(np.rint((values - low) / span * 255).astype(np.uint8))
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def _to_srgb(image: Image.Image, data: bytes, notes: list[str]) -> Image.Image:
    try:
        profile: Any = ImageCms.getOpenProfile(io.BytesIO(data))
        label = one_line(ImageCms.getProfileDescription(profile).strip(), 60)
        fits = profile.profile.xcolor_space.strip() == image.mode.removesuffix("A")
        if not fits or "srgb" in label.lower():
            return image
        mode = "RGB" if image.mode == "CMYK" else image.mode
        srgb = ImageCms.createProfile("sRGB")
        converted = cast(Image.Image, ImageCms.profileToProfile(image, profile, srgb, outputMode=mode))
    except _BAD_PROFILE:
        notes.append("colour profile unreadable: ignored")
        return image
    notes.append(f"{'CMYK' if image.mode == 'CMYK' else f'colour profile {label}'}: converted to sRGB")
    return converted


def _on_white(image: Image.Image, notes: list[str]) -> Image.Image:
    alpha = image.getchannel("A")
    colours = image.convert("RGB")
    if cast(tuple[int, int], alpha.getextrema())[0] == 255:
        return colours
    notes.append("transparent: placed on white")
    white = Image.new("RGB", image.size, "white")
    white.paste(colours, mask=alpha)
    return white
