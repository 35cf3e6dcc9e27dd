"""The main job on four photos that ship with scikit-image, tiled into one picture of 2048 x 1536: `make demo`.

Three questions about one picture: the heat maps show the budget moving with the question.
"""

import subprocess
import sys
from pathlib import Path

import skimage.data
from PIL import Image, ImageOps

FOLDER = Path("demo")
QUESTIONS = ["where is the cat?", "something to drink", "the rocket"]


def photos(width: int = 2048, height: int = 1536) -> Image.Image:
    """A cat, a coffee, an astronaut and a rocket, each cut to a quarter of the picture and not stretched."""
    whole = Image.new("RGB", (width, height))
    shots = (skimage.data.chelsea(), skimage.data.coffee(), skimage.data.astronaut(), skimage.data.rocket())
    for place, shot in enumerate(shots):
        part = ImageOps.fit(Image.fromarray(shot), (width // 2, height // 2), Image.Resampling.BICUBIC)
        whole.paste(part, (place % 2 * width // 2, place // 2 * height // 2))
    return whole


def main() -> None:
    """Write the picture, look at it as a user would, and draw one sheet of all heat maps."""
    FOLDER.mkdir(exist_ok=True)
    photo = FOLDER / "four-photos.jpg"
    photos().save(photo, quality=90)
    line = ["regard", "look", str(photo), *QUESTIONS, "--out", str(FOLDER)]
    print("$", *(f"'{part}'" if " " in part else part for part in line), flush=True)
    done = subprocess.run([str(Path(sys.executable).parent / line[0]), *line[1:]], check=False)
    if done.returncode:
        sys.exit(done.returncode)
    from regard import Record
    from regard.report.pictures import sheet

    sheet(Record.load(FOLDER / "record.json")).save(FOLDER / "sheet.jpg", quality=85)
    print(f"All heat maps in one picture: {FOLDER / 'sheet.jpg'}")


if __name__ == "__main__":
    main()
