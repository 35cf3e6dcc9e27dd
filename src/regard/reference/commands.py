"""docs/commands.md: every command of the command line, from the signatures that `--help` is made of."""

import inspect
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from typer.models import ArgumentInfo, OptionInfo, ParameterInfo

PLACE = Path("docs") / "commands.md"
_HEAD = """# The commands

Every command and its options, as `regard COMMAND --help` says them. `python -m regard.reference` writes this page.

```sh
regard --help
regard look --help
```

A usage that cannot work is one line and exit code 2, a failure one line and exit code 1. Where a command has `--debug`,
that shows the traceback of an error.
"""


@dataclass(frozen=True)
class Parameter:
    """An argument or option. names: as given, an argument's in capitals; takes: what follows an option."""

    names: tuple[str, ...]
    takes: str
    help: str
    default: str
    is_option: bool


@dataclass(frozen=True)
class Command:
    """words: those after `regard`. said: its help, whole."""

    words: str
    said: str
    parameters: tuple[Parameter, ...]


def commands() -> dict[str, Command]:
    """Every command by its words after `regard`, in the order of `--help`."""
    from regard.cli import app

    return {one.words: one for one in _under(app, "")}


def _under(app: typer.Typer, before: str) -> Iterator[Command]:
    for one in app.registered_commands:
        assert one.callback is not None
        words = f"{before}{one.name or one.callback.__name__.replace('_', '-')}"
        said = inspect.cleandoc(one.help or one.callback.__doc__ or "")
        yield Command(words, said, tuple(_parameters(one.callback)))
    for group in app.registered_groups:
        assert group.typer_instance is not None
        yield from _under(group.typer_instance, f"{before}{group.name} ")


def _parameters(callback: Callable) -> Iterator[Parameter]:
    hints = get_type_hints(callback, include_extras=True)
    for name, one in inspect.signature(callback).parameters.items():
        kind, *marks = get_args(hints[name])
        info: ParameterInfo = next(mark for mark in marks if isinstance(mark, ParameterInfo))
        default = "" if one.default is inspect.Parameter.empty else _default(info, one.default)
        if isinstance(info, OptionInfo):
            # in Annotated, typer keeps the first name where a default would stand
            declared = [info.default] if isinstance(info.default, str) else []
            given = tuple(part for decl in [*declared, *(info.param_decls or ())] for part in decl.split("/"))
            names = given or (f"--{name.replace('_', '-')}",)
            yield Parameter(names, info.metavar or _takes(kind), info.help or "", default, True)
        else:
            assert isinstance(info, ArgumentInfo)
            many = "..." if get_origin(kind) is list else ""
            yield Parameter((f"{info.metavar or name.upper()}{many}",), "", info.help or "", default, False)


def _takes(kind: Any) -> str:
    """What an option takes, in words: nothing where it is a flag."""
    if get_origin(kind) in (Union, types.UnionType):
        return _takes(next(one for one in get_args(kind) if one is not type(None)))
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    if get_origin(kind) is list:
        return f"{_takes(get_args(kind)[0])}, again for more"
    return {bool: "", int: "INT", float: "NUMBER", str: "TEXT", Path: "PATH"}[kind]


def _default(info: ParameterInfo, value: Any) -> str:
    if isinstance(info.show_default, str):
        return info.show_default
    return "" if value is None or isinstance(value, bool) or not info.show_default else f"`{value}`"


def page() -> str:
    """The page."""
    found = commands()
    parts = [_HEAD, "| command | what it does |", "|---|---|"]
    for name, one in found.items():
        said = _cell(one.said.partition("\n\n")[0])
        parts.append(f"| [`regard {name}`](#regard-{name.replace(' ', '-')}) | {said} |")
    return "\n".join([*parts, *(_section(one) for one in found.values())]) + "\n"


def _section(command: Command) -> str:
    given = [one.names[0] for one in command.parameters if not one.is_option]
    usage = " ".join(["regard", command.words, *given, "[OPTIONS]"])
    rows = [_row(one) for one in command.parameters]
    table = ["| argument or option | what | by default |", "|---|---|---|", *rows] if rows else []
    return "\n".join([f"\n## regard {command.words}\n", f"`{usage}`\n", command.said, "", *table])


def _row(one: Parameter) -> str:
    name = " ".join(filter(None, (", ".join(one.names), one.takes))).replace("|", "\\|")
    return f"| `{name}` | {_cell(one.help)} | {_cell(one.default)} |".replace("|  |", "| |")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
