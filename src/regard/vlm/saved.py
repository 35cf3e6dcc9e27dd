"""A vision-language model of parts in a folder or on the hub: what was trained, and which parts it was built from.

- config.json: which eye, mechanism, fusion and language model, with all arguments;
- model.safetensors: weights of the bridge and the fusion, and of an eye that is trained;
- tokenizer/: of the language model; language_model/: its weights, where they are no longer those of its name;
  language_model_adapter/: an adapter of peft;
- README.md: a model card; the licence is left to who publishes.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from regard import __version__
from regard.errors import DataError, ModelError, loading
from regard.vlm.bridges.queried import Queried
from regard.vlm.card import card
from regard.vlm.fusion.fusion import base_of
from regard.vlm.parts import PACKAGED, named_language_model, named_tokenizer
from regard.vlm.processors import checked_device, model_folder

if TYPE_CHECKING:
    from regard.eyes import SizedEye
    from regard.vlm.bridges import Bridge
    from regard.vlm.compose import VLM
    from regard.vlm.fusion import Fusion

FORMAT, VERSION = "regard-vlm", 1
CONFIG, WEIGHTS, TOKENIZER, CARD = "config.json", "model.safetensors", "tokenizer", "README.md"
WHOLE, ADAPTER = "language_model", "language_model_adapter"
_LAYOUT = {CONFIG, WEIGHTS, TOKENIZER, CARD, WHOLE, ADAPTER}


def save_pretrained(vlm: "VLM", folder: str | os.PathLike) -> None:
    """Write the model to a folder, all of it or nothing; one that was saved there before is replaced.

    A frozen language model that has a name, and the weights it came with, is saved by its name alone. Raises DataError
    where the folder cannot be written, or holds anything else.
    """
    target = Path(folder).absolute()
    try:
        with _replacing(target) as new:
            _write(vlm, new)
    except OSError as error:
        raise DataError(f"cannot write to {str(target)!r}: {error.strerror or error}: choose another place") from error


def push_to_hub(vlm: "VLM", repo_id: str, *, private: bool = False, token: str | None = None) -> str:
    """Upload what `save_pretrained` writes to a repository of the hub, made if need be. Returns its address."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    address = api.create_repo(repo_id, private=private, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        save_pretrained(vlm, Path(place) / "model")
        api.upload_folder(repo_id=repo_id, folder_path=Path(place) / "model", commit_message="A model of regard")
    return str(address)


def from_pretrained(
    cls: "type[VLM]",
    name: str | os.PathLike,
    *,
    eye: "SizedEye | str | None" = None,
    mechanism: "Bridge | None" = None,
    fusion: "Fusion | None" = None,
    language_model: nn.Module | str | None = None,
    device: str = "auto",
) -> "VLM":
    """The model in a folder, or by its name on the hub, ready to answer.

    eye, mechanism, fusion: needed where they were given to the model as they are, not by name. language_model: in place
    of the one that was named. device: of what is loaded by name; "auto" is a GPU if any. Raises ModelError where there
    is none, or where a part cannot be loaded or is missing, DataError where the folder is damaged or holds another
    model.
    """
    folder = model_folder(name)
    config = _config(folder)
    try:
        written = dict(config["eye"])
        kind, found = written.pop("kind"), {} if eye is not None else written
        made = {part: config[part] or {} for part in ("mechanism", "fusion")}
        said, adapter = config["language_model"], config["adapter"]
        eye_weights, began = config["eye_weights"], config.get("began", False)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{str(folder / CONFIG)!r} is damaged: {error!r}: save the model anew") from error
    if eye is None and kind == "given":
        raise ModelError(f"the eye of this model is {written.get('name')!r}, which has no name to load it by: give eye")
    for part, given in (("mechanism", mechanism), ("fusion", fusion)):
        if given is None and not made[part]:
            raise ModelError(f"the {part} of this model was given as it is, and has no name to load it by: give {part}")
    with _named_parts(folder):
        vlm = cls(
            eye if eye is not None else kind if kind in PACKAGED else found.pop("name_or_path"),
            mechanism if mechanism is not None else made["mechanism"]["name"],
            _language_model(folder, said, adapter, language_model, device),
            named_tokenizer(folder / TOKENIZER),
            fusion if fusion is not None else made["fusion"]["name"],
            eye_arguments=found,
            bridge_arguments=made["mechanism"].get("arguments"),
            fusion_arguments=made["fusion"].get("arguments"),
        )
    _restore(vlm, folder, eye_weights)
    if isinstance(vlm.bridge, Queried):
        vlm.bridge.began = began
    return vlm.eval()


@contextmanager
def _named_parts(folder: Path) -> Iterator[None]:
    """Parts of a model are found by their names; where one is not, say how to give it."""
    try:
        yield
    except ModelError as error:
        if "cannot be loaded" not in str(error):
            raise
        raise ModelError(
            f"{error}: where {str(folder)!r} names what is elsewhere now, give eye or language_model"
        ) from error


def versions(language_model: nn.Module) -> int:
    """A number that is another once the language model's own weights were written to, by an optimizer or otherwise."""
    return sum(value._version for name, value in language_model.named_parameters() if is_own(name))


def _write(vlm: "VLM", folder: Path) -> None:
    parts: dict[str, nn.Module] = {"bridge": vlm.bridge, "fusion": vlm.fusion}
    learns = isinstance(vlm.eye, nn.Module) and any(value.requires_grad for value in vlm.eye.parameters())
    if trained := learns or vlm.eye_trained:
        parts["eye"] = vlm.eye  # pyright: ignore[reportArgumentType]
    weights = {
        f"{part}.{name}": value.detach().contiguous()
        for part, module in parts.items()
        for name, value in module.state_dict().items()
    }
    model: Any = vlm.language_model
    base = base_of(model)
    said: dict[str, Any] = {"dtype": str(base.dtype).removeprefix("torch.")}
    frozen = not any(value.requires_grad for name, value in model.named_parameters() if is_own(name))
    if base.config.name_or_path and frozen and versions(model) == vlm.started:
        revision = getattr(base.config, "_commit_hash", None)
        said |= {"name_or_path": base.config.name_or_path, "revision": revision}
    else:
        base.save_pretrained(folder / WHOLE, state_dict=_without_adapter(base))
    if base is not model:
        model.save_pretrained(folder / ADAPTER, save_embedding_layers=False)
        (folder / ADAPTER / CARD).unlink(missing_ok=True)
    vlm.tokenizer.save_pretrained(folder / TOKENIZER)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    config = {
        "format": FORMAT,
        "version": VERSION,
        "regard": __version__,
        **vlm.described,
        "eye": vlm.described_eye,
        "eye_weights": trained,
        "began": isinstance(vlm.bridge, Queried) and vlm.bridge.began,
        "language_model": said,
        "adapter": base is not model,
    }
    (folder / CARD).write_text(card(vlm, config))
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def is_own(name: str) -> bool:
    """Whether a parameter of this name is of the language model and not of an adapter."""
    return ".lora_" not in name and ".modules_to_save." not in name


def _without_adapter(base: nn.Module) -> dict[str, Tensor]:
    """The weights of a language model by the names that they have without an adapter."""
    state = base.state_dict()
    return {
        name.replace(".base_layer.", ".").replace(".original_module.", "."): value
        for name, value in state.items()
        if is_own(name)
    }


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A new folder, which takes the target's place when it is whole; until then the target is as it was."""
    if target.is_file():
        raise DataError(f"{str(target)!r} is a file: choose a folder")
    there = {entry.name for entry in target.iterdir()} if target.exists() else set()
    if there and (CONFIG not in there or there - _LAYOUT):
        other = sorted(there - _LAYOUT or there)[0]
        raise DataError(f"the folder {str(target)!r} holds {other!r}, which saving would remove: choose another folder")
    if there:
        _config(target)
    new, old = (target.with_name(f".{target.name}.{os.getpid()}.{what}") for what in ("new", "old"))
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        yield new
        for path in new.rglob("*"):
            if path.is_file():
                _flush(path)
        if target.exists():
            target.rename(old)
        new.rename(target)
    finally:
        if old.exists() and not target.exists():
            old.rename(target)
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise DataError(f"the folder {str(folder)!r} has no {CONFIG}: it holds no model") from None
    except ValueError as error:
        raise DataError(f"{str(path)!r} is damaged: {error}: save the model anew") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise DataError(f"the folder {str(folder)!r} holds another model than those of regard.VLM")
    if config.get("version") != VERSION:
        raise DataError(
            f"the model in {str(folder)!r} is of version {config.get('version')}, this regard reads {VERSION}: "
            f"it was saved by regard {config.get('regard')}"
        )
    return config


def _language_model(
    folder: Path, said: dict[str, Any], adapter: bool, given: nn.Module | str | None, device: str
) -> nn.Module:
    """The one given, named or saved, with its adapter around it."""
    model: Any = given
    if isinstance(given, str):
        model = named_language_model(given, checked_device(device), said["dtype"])
    elif given is None and "name_or_path" in said:
        model = named_language_model(said["name_or_path"], checked_device(device), said["dtype"], said["revision"])
    elif given is None:
        model = named_language_model(folder / WHOLE, checked_device(device), said["dtype"])
        model.config.name_or_path = ""  # its weights are in no other place
    if adapter and base_of(model) is model:
        with loading(f"the adapter in {str(folder / ADAPTER)!r}"):
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, str(folder / ADAPTER)).eval()
    return model


def _restore(vlm: "VLM", folder: Path, eye_weights: bool) -> None:
    """The weights into the model's parts."""
    path = folder / WEIGHTS
    try:
        weights = load_file(path)
    except Exception as error:  # safetensors has errors of its own
        reason = "is missing" if not path.exists() else f"is damaged ({str(error).splitlines()[0]})"
        raise DataError(f"{str(path)!r} {reason}: save the model anew") from error
    parts: dict[str, Any] = {"bridge": vlm.bridge, "fusion": vlm.fusion, **({"eye": vlm.eye} if eye_weights else {})}
    if eye_weights and not isinstance(vlm.eye, nn.Module):
        raise ModelError(f"the eye of this model was trained: give one that is a module, got {vlm.eye.name!r}")
    wanted = {f"{part}.{name}": value for part, module in parts.items() for name, value in module.state_dict().items()}
    for name in sorted(weights.keys() ^ wanted.keys()):
        raise DataError(f"{str(path)!r} {'lacks' if name in wanted else 'has the unknown'} {name}: it is another model")
    for name, value in weights.items():
        if value.shape != wanted[name].shape:
            shapes = f"{tuple(value.shape)}, expected {tuple(wanted[name].shape)}"
            raise DataError(f"{str(path)!r} has {name} of shape {shapes}: it is of other parts")
    for part, module in parts.items():
        module.load_state_dict({n.removeprefix(f"{part}."): v for n, v in weights.items() if n.startswith(f"{part}.")})
    vlm.eye_trained = eye_weights
    if eye_weights:
        parts["eye"].requires_grad_(True)
