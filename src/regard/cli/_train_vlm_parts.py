"""The model that `regard train bridge`, `two-stage` and `full` train: of parts that are named, or trained before."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from regard.cli._shared import UsageError
from regard.errors import DataError

if TYPE_CHECKING:
    from regard.cli._train_vlm import Settings
    from regard.vlm.compose import VLM

PARTS = {"eye": "embedded", "bridge": "qformer", "fusion": "early"}  # and what each is where it is not given


def begun(settings: "Settings") -> "VLM":
    """A model of the parts that the settings name."""
    from regard.vlm import bridges
    from regard.vlm import fusion as fusions
    from regard.vlm.bridges.projector import Projector
    from regard.vlm.compose import VLM
    from regard.vlm.parts import eye_kind, named_language_model
    from regard.vlm.processors import checked_device

    parts = [dict(getattr(settings, name) or {"name": usual}) for name, usual in PARTS.items()]
    eye, mechanism, fusion = (part.pop("name") for part in parts)
    _check_types("eye", eye_kind(eye), parts[0])
    _check_types("bridge", bridges.KINDS.get(mechanism, Projector), parts[1])
    _check_types("fusion", fusions.KINDS.get(fusion), parts[2])
    arguments = dict(zip(("eye_arguments", "bridge_arguments", "fusion_arguments"), parts, strict=True))
    assert settings.language_model is not None
    language_model = named_language_model(settings.language_model, checked_device("auto"), settings.dtype)
    return VLM(eye, mechanism, language_model, fusion=fusion, **arguments)


def started(settings: "Settings", start: str) -> "VLM":
    """A model that was trained before. Raises UsageError where the settings say that its parts are others."""
    from regard.vlm import bridges
    from regard.vlm import fusion as fusions
    from regard.vlm.compose import VLM
    from regard.vlm.fusion.fusion import base_of
    from regard.vlm.parts import arguments_of, plain

    if settings.dtype != "auto":
        raise UsageError("the setting dtype is for language_model: a model that is started from has its own")
    vlm = VLM.from_pretrained(start)
    language_model = base_of(vlm.language_model).config.name_or_path
    if settings.language_model is not None and not _same_place(settings.language_model, language_model):
        has = f"the language model {language_model!r}" if language_model else "a language model of its own"
        raise UsageError(f"{start!r} has {has}: leave language_model out, or start")
    eye = vlm.described_eye
    eye_name = eye.get("name_or_path", eye["kind"])
    there: dict[str, Any] = {"eye": {"name": eye_name, "arguments": {**arguments_of(eye_name), **eye}}}
    there |= {"bridge": vlm.described["mechanism"], "fusion": vlm.described["fusion"]}
    whole = {"bridge": bridges.complete, "fusion": fusions.complete}
    for table, found in there.items():
        asked = dict(getattr(settings, table) or {})
        name = asked.pop("name", None)
        if name is not None and (found is None or not _same_place(name, found["name"])):
            raise UsageError(_other_part(start, f"{table}.name {name!r}"))
        if name is not None and table in whole:
            whole[table](name, **asked)  # refuses what it does not know
        known = {} if found is None else found["arguments"]
        for key, value in plain(table, asked).items():
            if key != "device" and known.get(key) != value:
                raise UsageError(_other_part(start, f"{table}.{key} {value!r}"))
    return vlm


def _same_place(one: str, other: str) -> bool:
    """Whether two names are one, or of one folder."""
    return one == other or (Path(one).is_dir() and Path(one).resolve() == Path(other).resolve())


def _other_part(start: str, what: str) -> str:
    table = what.partition(".")[0]
    return f"{start!r} was trained with another {table} than {what}: leave {table} out, or start"


def _check_types(table: str, made: Callable[..., Any] | None, arguments: dict[str, Any]) -> None:
    """Raise UsageError where an argument is of another type than what makes the part has it."""
    from regard.train.settings import fitting

    hints = {} if made is None else get_type_hints(made.__init__ if isinstance(made, type) else made)
    try:
        for name in arguments.keys() & hints.keys():
            fitting(hints[name], arguments[name], f"{table}.{name}")
    except DataError as error:
        raise UsageError(str(error)) from error
