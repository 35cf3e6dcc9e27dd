"""Which images can be read, found once and kept beside the cache, for an eye that learns and looks at each anew."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from regard.errors import ImageError
from regard.files import write_whole
from regard.images import load_image


def broken(images: Mapping[str, str], cache: Path, team: Any, stage: Callable[[str], None]) -> dict[str, str]:
    """The hashes of images that cannot be read, and why. images: hashes and paths. team: an `Accelerator`, whose
    processes share the work.
    """
    from accelerate.utils import gather_object

    file = cache / "decoded.json"
    known: dict[str, str] = json.loads(file.read_text()) if file.is_file() else {}
    wanted = [key for key in images if key not in known]
    found = []
    for number, key in enumerate(wanted[team.process_index :: team.num_processes]):
        if number % 100 == 0:
            stage(f"read the images: {number * team.num_processes} of {len(wanted)}")
        found.append((key, _why(images[key])))
    known |= dict(gather_object(found))
    team.wait_for_everyone()
    if team.is_main_process and wanted:
        write_whole(file, json.dumps(known))
    return {key: why for key, why in known.items() if why and key in images}


def _why(path: str) -> str:
    """Why an image cannot be read; nothing where it can."""
    try:
        load_image(path)
    except ImageError as error:
        return str(error)
    return ""
