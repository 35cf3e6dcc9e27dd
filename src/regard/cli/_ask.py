"""`regard ask`: a model's answers with all of its visual tokens and with fewer."""

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from regard.cli._shared import (
    Progress,
    State,
    UsageError,
    check_allocators,
    check_writable,
    checked_states,
    console,
    hush,
    names_in,
    write,
)

if TYPE_CHECKING:
    from regard.vlm.ask import Asked

Positions = Literal["original", "compact"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
ORDER = 'regard ask IMAGE... "QUESTION"'


def ask(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar='IMAGE... "QUESTION"', help="One photo or several, and the question last.", show_default=False
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(help="A folder, or a name of the Hugging Face hub.", show_default="the pocket model, offline"),
    ] = None,
    budget: Annotated[int | None, typer.Option(help="Tokens an image.", show_default=False)] = None,
    keep: Annotated[float | None, typer.Option(help="Fraction of the tokens to keep.", show_default="0.25")] = None,
    allocator: Annotated[
        str | None, typer.Option(help="How to shorten.", show_default="divprune, of the pocket model relevance")
    ] = None,
    compare: Annotated[
        str | None, typer.Option(help="More ways to shorten: names, separated by commas.", show_default=False)
    ] = None,
    tiles: Annotated[
        int | None, typer.Option(help="Answer from the image in tiles, of so many tokens in all.", show_default=False)
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="The longest answer.")] = 32,
    positions: Annotated[Positions, typer.Option(help="Where the tokens left stand.")] = "original",
    sign: Annotated[int, typer.Option(help="-1 where the model's relevance points away.", show_default="1")] = 1,
    scope: Annotated[str, State("scope")] = "auto",
    tempering: Annotated[str, State("tempering")] = "auto",
    prioritization: Annotated[str, State("prioritization")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[Dtype, typer.Option(help="auto is that of the model's files.")] = "auto",
    out: Annotated[Path, typer.Option(help="Folder for record.json, the pictures and report.html.")] = Path(
        "regard-ask"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print the records as JSON, not a table.")] = False,
    seed: Annotated[int, typer.Option(help="For allocators that draw.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Ask a vision-language model about a photo, with all of its visual tokens and with fewer."""
    images, question = _split(words)
    first, others = _one_name(allocator), names_in(compare)
    amount: dict[str, Any] = {"budget": budget, "keep": keep, "tiles": tiles}
    if model is None:
        only = {"tiles": tiles, "sign": sign, "positions": positions, "device": device, "dtype": dtype}
        _check_pocket(first, others, len(images), only)
    _check_usage(first, others, sign, max_new_tokens, amount, len(images), pocket=model is None)
    chosen = [*([first] if first or not others else []), *(others or [])]
    usual = "relevance" if model is None else "divprune"
    uses = None if tiles is not None else [name or usual for name in chosen]
    states = checked_states(scope, tempering, prioritization, uses)
    check_writable(out)
    _check_images(images)
    amount |= {"allocator": first, "compare": others or ()}
    way = {"max_new_tokens": max_new_tokens, "positions": positions, "sign": sign, "seed": seed, "states": states}
    with Progress(quiet) as stage:
        if model is None:
            names = [name or usual for name in chosen]
            way = {"max_new_tokens": max_new_tokens, "seed": seed, "states": states}
            asked = _of_pocket(images[0], question, mechanisms=names, budget=budget, keep=keep, progress=stage, **way)
        else:
            asked = _answered(images, question, model, dtype, device, progress=stage, **amount, **way)
        stage("draw")
        folders = [out / str(number + 1) for number in range(len(images))] if len(images) > 1 else [out]
        written = [write(record, folder) for record, folder in zip(asked.records, folders, strict=True)]
    if as_json:
        records = [json.loads(record.to_json()) for record in asked.records]
        typer.echo(json.dumps(records[0] if len(records) == 1 else records))
    elif not quiet:
        _show(asked, written)


def _of_pocket(image: str, question: str, **options: Any) -> "Asked":
    """The pocket model's answers, without a word on the terminal."""
    options["progress"]("load the model")
    hush()
    from regard.vlm.pocket_ask import ask_pocket

    return ask_pocket(image, question, **options)


def _check_pocket(first: str | None, others: list[str] | None, images: int, only: dict[str, Any]) -> None:
    """Raise UsageError for what only a model of Hugging Face can do, or a mechanism that the pocket model has not."""
    usual = {"tiles": (None,), "sign": (1,), "positions": ("original",), "device": ("auto", "cpu"), "dtype": ("auto",)}
    for name, value in only.items():
        if value not in usual[name]:
            raise UsageError(f"--{name} is for a model of Hugging Face: give its name to --model")
    if images > 1:
        raise UsageError(f"the pocket model answers about one image, got {images}: give --model NAME for several")
    from regard.vlm.pocket import MECHANISMS

    for name in [*([] if first is None else [first]), *(others or [])]:
        if name not in MECHANISMS:
            raise UsageError(f"the pocket model has no mechanism {name!r}: it has {', '.join(MECHANISMS)}")


def _answered(images: list[str], question: str, model: str, dtype: str, device: str, **options: Any) -> "Asked":
    """Load the model, and let it answer without a word on the terminal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options["progress"]("load the model")
        hush()
        from regard.vlm.ask import ask as answers
        from regard.vlm.processors import load_config, load_model, load_processor
        from regard.vlm.tiled import token_pixels

        if options["tiles"] is not None:
            token_pixels(load_config(model))
        processor = load_processor(model)
        return answers(load_model(model, dtype=dtype, device=device), processor, images, question, **options)


def _split(words: list[str]) -> tuple[list[str], str]:
    """The images and the question. Raises UsageError where their order cannot be meant."""
    *images, question = words
    if _is_file(question):
        if images and not _is_file(images[0]):
            raise UsageError(f"the question comes last: {ORDER}")
        raise UsageError(f"the question is missing, as {question!r} is a file: {ORDER}")
    if not images:
        raise UsageError(f"the image is missing, as {question!r} is no file: {ORDER}")
    if not question.strip():
        raise UsageError("the question is empty: ask in words, such as 'where is the cat?'")
    if _is_file(images[0]) and len(images) > 1 and not any(_is_file(name) or "." in name for name in images[1:]):
        raise UsageError(f"put quotes around the question: {ORDER}")
    return images, question


def _is_file(word: str) -> bool:
    try:
        return Path(word).is_file()
    except (OSError, ValueError):
        return False


def _one_name(allocator: str | None) -> str | None:
    if allocator is not None and "," in allocator:
        raise UsageError("--allocator takes one name: give several to --compare")
    return allocator


def _check_usage(
    first: str | None,
    others: list[str] | None,
    sign: int,
    max_new_tokens: int,
    amount: dict[str, Any],
    images: int,
    pocket: bool,
) -> None:
    if sign not in (1, -1):
        raise UsageError(f"--sign must be 1 or -1, got {sign}")
    if max_new_tokens < 1:
        raise UsageError(f"--max-new-tokens must be at least 1, got {max_new_tokens}")
    if not pocket:
        check_allocators([*([] if first is None else [first]), *([""] if others == [] else others or [])])
    if any(value is not None for value in amount.values()):
        from regard.vlm.ask import checked_amount

        checked_amount(images, **amount, named=bool(first or others))


def _check_images(images: list[str]) -> None:
    """Raise ImageError before a model is loaded in vain."""
    from regard.images import load_image

    for image in images:
        load_image(image)


def _show(asked: "Asked", written: list[Path]) -> None:
    from regard.report.table import answers_table

    terminal = console()
    for note in dict.fromkeys((*(n for r in asked.records for n in r.picture.notes), *asked.notes)):
        terminal.print(f"note: {note}", style="yellow", markup=False)
    terminal.print(answers_table(asked.records[0], more=len(asked.records) - 1))
    places = ", ".join(str(place) for place in written)
    terminal.print(f"Open {places}", markup=False, highlight=False, soft_wrap=True)
