"""Which images can be read, for an eye that learns and looks at each anew; what was read once is not checked again."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from regard.errors import ImageError
from regard.files import write_whole
from regard.images import load_image

_AT_ONCE = 5000  # images of a process, after which it is written


def broken(images: Mapping[str, str], cache: Path, team: Any, stage: Callable[[str], None]) -> dict[str, str]:
    """The hashes of images that cannot be read, and why. images: hashes and paths. team: an `Accelerator`, whose
    processes share the work.
    """
    from accelerate.utils import gather_object

    file = cache / "decoded.json"
    good: set[str] = set(json.loads(file.read_text())) if file.is_file() else set()
    wanted, bad = [key for key in images if key not in good], dict[str, str]()
    together = _AT_ONCE * team.num_processes
    for start in range(0, len(wanted), together):
        mine = wanted[start : start + together][team.process_index :: team.num_processes]
        found = []
        for number, key in enumerate(mine):
            if number % 100 == 0:
                stage(f"read the images: {start + number * team.num_processes} of {len(wanted)}")
            found.append((key, _why(images[key])))
        several = dict(gather_object(found))
        bad |= {key: why for key, why in several.items() if why}
        good |= several.keys() - bad.keys()
        if team.is_main_process:
            write_whole(file, json.dumps(sorted(good)))
    return bad


def _why(path: str) -> str:
    """Why an image cannot be read; nothing where it can."""
    try:
        load_image(path)
    except ImageError as error:
        return str(error)
    return ""
