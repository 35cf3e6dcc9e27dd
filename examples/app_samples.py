"""The pictures that come with `regard app`: photos that ship with scikit-image, alone, together and with shapes on one.

`python examples/app_samples.py` writes src/regard/app/samples/*.jpg.
"""

from pathlib import Path

import numpy as np
import skimage.data
from demo import photos
from PIL import Image, ImageOps

from regard.bench.tasks.asked.drawing import shape, sign

FOLDER = Path("src") / "regard" / "app" / "samples"
SHAPES = (  # name, colour, longest side, where its corner is, in pixels
    ("star", "yellow", 110, (84, 70)),
    ("heart", "red", 96, (800, 86)),
    ("circle", "blue", 84, (460, 150)),
    ("square", "green", 72, (150, 560)),
    ("circle", "purple", 104, (770, 530)),
)


def shapes(width: int = 960, height: int = 704) -> Image.Image:
    """Five shapes and a sign on a launch site, as the pocket model's scenes have them."""
    rng = np.random.default_rng(0)
    image = ImageOps.fit(Image.fromarray(skimage.data.rocket()), (width, height), Image.Resampling.BICUBIC)
    for name, colour, side, corner in SHAPES:
        thing = shape(rng, name, colour)
        thing.thumbnail((side, side), Image.Resampling.LANCZOS)
        image.paste(thing, corner, thing)
    plate = sign(rng, "stop", "white", 220)
    plate = plate.resize((200, round(200 * plate.height / plate.width)), Image.Resampling.LANCZOS)
    image.paste(plate, (390, 520), plate)
    return image


def main() -> None:
    """Write them, small enough to come with the package."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    pictures = {"four-photos": photos(1024, 768), "shapes": shapes(), "cat": Image.fromarray(skimage.data.chelsea())}
    for name, picture in pictures.items():
        picture.save(FOLDER / f"{name}.jpg", quality=82, optimize=True)
        print(name, picture.size, (FOLDER / f"{name}.jpg").stat().st_size)


if __name__ == "__main__":
    main()
