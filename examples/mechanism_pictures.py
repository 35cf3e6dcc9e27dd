"""docs/mechanisms.md and its pictures: where each trained mechanism looks, on one boot and on one photo.

`python examples/mechanism_pictures.py RUNS`: RUNS is a folder of what `regard train` wrote. Each looks at an image
of the task that it was trained on, but not at one that it was trained with.
"""

import inspect
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
from PIL import Image

from regard.bench.readme import generated
from regard.report.glimpses import path
from regard.train.checkpoint import looker

FOLDER, PAGE = Path("docs") / "mechanisms", Path("docs") / "mechanisms.md"
PARTS = (  # module, its run, the task, and the results that are shown below it
    ("recurrent", "ram-fashion-0", "fashion", "ram"),
    ("cascade", "cascade-fashion-2-0", "fashion", "cascade"),
    ("dynamicvit", "dynamicvit-fashion-0", "fashion", "dynamic"),
    ("avit", "avit-fashion-0", "fashion", None),
    ("evit", "evit-fashion-0", "fashion", None),
    ("pervit", "foveated/pervit-peripheral-0", "fashion", None),
    ("gaze_vit", "foveated/gaze", "search", "foveated"),
    ("foveated", "foveated/foveater", "search", None),
)
HEAD = """# The mechanisms that look

Image classifiers that choose where to look, to train, to watch, and to compare with one that reads everything.

```sh
regard train ram --task mnist --glimpses 6 --out ram    # fetches MNIST once; stop it at any moment, it goes on
regard show ram digit.png                               # the path of its fixations, and an animation
```

Each is a `regard.mechanisms.looker.Looker`. For a batch, `look(pixels)` gives
the class, the regions that were read and at which stage, the fixations, the exit, and the tokens and
multiply-accumulates spent on each image; `see(image)` gives the same of one image as a `Seen` with its Record.
`regard train` trains one from nothing, `regard show` draws where it looks. The multiply-accumulates that it counts are
those that are measured, an image's result does not depend on its neighbours, and a seed decides all that is drawn: one
contract holds for all (`tests/test_lookers.py`).

The pictures are of one boot of Fashion-MNIST's test images, and of one photo of the search task, by the runs that the
figures are of (`python examples/mechanism_pictures.py RUNS`). Lit is what was read, framed in the colour of the stage
at which it was; dark is what was not. An error of RAM is that of the mean of ten runs over an image; that of one run,
which is what six glimpses alone can tell, stands below it.
"""


def images() -> dict[str, Image.Image]:
    """By task: an image that nothing was trained on."""
    from regard.bench.tasks.fashion import fashion
    from regard.bench.tasks.search import search

    photo = search(1, 512, 11, "test").images[0].permute(1, 2, 0).numpy()
    return {
        "fashion": Image.fromarray(np.asarray(fashion().test[0])),
        "search": Image.fromarray(photo),
    }


def main() -> None:
    """Write docs/mechanisms.md and docs/mechanisms/MODULE.png."""
    runs, shown, parts = Path(sys.argv[1]), images(), [HEAD]
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, run, task, results in PARTS:
        module = import_module(f"regard.mechanisms.{name}")
        title, _, rest = inspect.cleandoc(module.__doc__ or "").partition("\n")
        model, labels = looker(runs / run)
        picture = path(model.see(shown[task], labels).record)
        picture.quantize(128).save(FOLDER / f"{name}.png", optimize=True)
        parts.append(f"## {name.replace('_', ' ')}\n\n{title}\n{rest}\n")
        parts.append(f"![Where {model.name} looks](mechanisms/{name}.png)\n")
        if results and (Path("results") / f"{results}.json").exists():
            parts.append(f"<!-- figures: {results} -->\n<!-- end -->\n")
        print(name, model.name, picture.size)
    PAGE.write_text(generated("\n".join(parts), Path("results")))


if __name__ == "__main__":
    main()
