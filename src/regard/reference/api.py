"""docs/api: the public names with signature, docstring and source, a page for each room."""

import ast
import re
from pathlib import Path

from regard.reference.source import HOUSE, Defined, about, file_of, find, public

FOLDER = Path("docs") / "api"
_HEAD = """# The reference

The public names of regard: what is here keeps its meaning between versions, what is not may change. Shapes stand in
signatures: `Float[Tensor, "b n d"]` is a batch of n tokens with d features. The pages are written from the code by
`python -m regard.reference`; the commands have [a page of their own](../commands.md).
"""
WIDTH = 100


def _files(folder: str, *left_out: str) -> tuple[str, ...]:
    names = sorted(file.stem for file in (HOUSE / folder).glob("[a-z]*.py"))
    place = folder.replace("/", ".")
    return tuple(f"{place}.{name}" for name in names if name not in left_out)


PAGES: dict[str, tuple[str, tuple[str, ...]]] = {  # what a page is about, and the modules whose public names it has
    "regard": (
        "the main functions and the nouns",
        ("", "tokens", "allocation", "record", "images", "looking", "tiling", "errors"),
    ),
    "allocate": ("ways of spending a budget of tokens", ("allocate", *_files("allocate"))),
    "attention": ("attention layers to use alone", _files("attention")),
    "relevance": ("the fourth way: ways, tensions, budget", _files("relevance")),
    "eyes": ("vision encoders", ("eyes", "eyes.embedded", "eyes.huggingface", "eyes.pocket", "eyes.crops")),
    "mechanisms": ("trained ways of looking", ("mechanisms", *_files("mechanisms"))),
    "vlm": (
        "Hugging Face models, and models of your own parts",
        (
            "vlm",
            *(f"vlm.{name}" for name in ("shorten", "shortened", "ask", "processors", "compose", "pocket")),
            "vlm.inside",
            *(f"vlm.inside.{name}" for name in ("fastv", "pyramiddrop")),
            "vlm.bridges",
            *_files("vlm/bridges"),
            "vlm.fusion",
            *_files("vlm/fusion"),
        ),
    ),
    "doctor": ("attention captured, importance, checks", ("doctor",)),
    "train": (
        "recipes and their settings",
        tuple(
            f"train.{name}"
            for name in (
                *("bridge", "two_stage", "full", "settings", "rows", "loop"),
                *("recurrent", "cascade", "dynamic", "foveated", "checkpoint"),
            )
        ),
    ),
    "cost": ("what it costs, by formula", ("cost", *_files("cost", "asked"))),
    "bench": ("measurements, compared and advised by", ("bench.advise", "bench.compare")),
    "report": ("pictures, tables and pages of a Record", _files("report", "digits")),
    "app": ("the page in a browser", ("app",)),
    "testing": ("the contract of an allocator", ("testing",)),
}


def pages() -> dict[Path, str]:
    """Every page of docs/api by its path."""
    return {FOLDER / "README.md": _map(), **{FOLDER / f"{name}.md": page(name) for name in PAGES}}


def names(page: str) -> dict[str, dict[str, Defined]]:
    """The public names of a page, by module; what several modules export stands where it comes first."""
    shown: set[tuple[str, str]] = set()
    found: dict[str, dict[str, Defined]] = {}
    for module in PAGES[page][1]:
        every = {name: one for name in public(module) if (one := find(module, name)) is not None}
        found[module] = {name: one for name, one in every.items() if (one.module, one.name) not in shown}
        shown |= {(one.module, one.name) for one in every.values()}
    return found


def page(name: str) -> str:
    """The page of a room."""
    parts = [f"# {_dotted('' if name == 'regard' else name)}: {PAGES[name][0]}\n"]
    for module, entries in names(name).items():
        if entries:
            parts.append(f"## {_dotted(module)}\n\n{markdown(about(module))}\n")
            parts += [_entry(f"{_dotted(module)}.{alias}", one) for alias, one in entries.items()]
    return "\n".join(parts)


def _map() -> str:
    parts = [_HEAD]
    for page, (title, _) in PAGES.items():
        links = [
            f"[{name}]({page}.md#{_dotted(module).replace('.', '')}{name.lower()})"
            for module, entries in names(page).items()
            for name in entries
        ]
        parts.append(f"## [{_dotted('' if page == 'regard' else page)}]({page}.md): {title}\n")
        parts.append(", \n".join(sorted(links, key=str.lower)).replace(", \n", ",\n") + "\n")
    return "\n".join(parts)


def _dotted(module: str) -> str:
    return f"regard.{module}" if module else "regard"


def _entry(name: str, found: Defined) -> str:
    place = file_of(found.module).relative_to(HOUSE.parents[1]).as_posix()
    parts = [f"### {name}\n", f"```python\n{signature(found)}\n```\n", f"{markdown(found.docstring)}\n"]
    members = [(one, found.said(one)) for one in found.members()]
    parts += [f"- `{_short(one)}`" + (f"\n\n  {_line(said)}\n" if said else "\n") for one, said in members]
    return "\n".join([*parts, f"[source](../../{place})\n"])


def signature(found: Defined) -> str:
    """As it is written in the code, on one line or with a line for each parameter."""
    return re.sub(r"'([^'\"]*)'", r'"\1"', _signature(found))


def _signature(found: Defined) -> str:
    node = found.node
    if isinstance(node, ast.FunctionDef):
        returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        return _call(f"def {node.name}", _parameters(node), returns)
    bases = [base for one in node.bases if (base := ast.unparse(one)) not in ("ABC", "nn.Module", "Protocol")]
    of = f"  # a {', '.join(bases)}" if bases else ""
    if found.is_dataclass:
        given = [ast.unparse(one) for one in found.fields()]
    else:
        made = found.made_by()
        given = _parameters(made)[1:] if made else []
    return _call(f"class {node.name}", given, of) if given else f"class {node.name}{of}"


def _parameters(node: ast.FunctionDef) -> list[str]:
    """One text for each parameter, with `/` and `*` where they stand."""
    args, made = node.args, []
    before = [*args.posonlyargs, *args.args]
    defaults = [None] * (len(before) - len(args.defaults)) + list(args.defaults)
    for place, (one, default) in enumerate(zip(before, defaults, strict=True)):
        made.append(_with_default(one, default))
        if args.posonlyargs and place == len(args.posonlyargs) - 1:
            made.append("/")
    if args.vararg or args.kwonlyargs:
        made.append(f"*{ast.unparse(args.vararg)}" if args.vararg else "*")
    made += [_with_default(*pair) for pair in zip(args.kwonlyargs, args.kw_defaults, strict=True)]
    return [*made, *([f"**{ast.unparse(args.kwarg)}"] if args.kwarg else [])]


def _with_default(one: ast.arg, default: ast.expr | None) -> str:
    if default is None:
        return ast.unparse(one)
    return f"{ast.unparse(one)}{' = ' if one.annotation else '='}{ast.unparse(default)}"


def _call(head: str, given: list[str], tail: str) -> str:
    whole = f"{head}({', '.join(given)}){tail}"
    if len(whole) <= WIDTH:
        return whole
    return f"{head}(\n" + "".join(f"    {one},\n" for one in given) + f"){tail}"


def _short(member: Defined) -> str:
    node = member.node
    assert isinstance(node, ast.FunctionDef)
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    marks = {ast.unparse(one) for one in node.decorator_list}
    if marks & {"property", "cached_property", "functools.cached_property"}:
        return node.name + returns.replace(" ->", ":")
    given = _parameters(node)
    whole = f"{node.name}({', '.join(given if 'staticmethod' in marks else given[1:])}){returns}"
    return re.sub(r"'([^'\"]*)'", r'"\1"', whole)


def _line(docstring: str) -> str:
    """As the text of a list's item."""
    return markdown(docstring).replace("\n", "\n  ").replace("\n  \n", "\n\n")


def markdown(docstring: str) -> str:
    """A docstring as Markdown: what is no code keeps its angle brackets, and what it raises begins a paragraph."""
    lines = [line if line.startswith("    ") else _prose(line) for line in docstring.splitlines()]
    whole = re.sub(r"(?<=[.)`])[ \n]Raises ", "\n\nRaises ", "\n".join(lines))
    return re.sub(r"^Raises ", "**Raises** ", whole, flags=re.MULTILINE)


def _prose(line: str) -> str:
    parts = re.split(r"(`[^`]*`)", line)
    return "".join(part if part.startswith("`") else _escaped(part) for part in parts)


def _escaped(text: str) -> str:
    return re.sub(r"(?<!\\)([<*])", r"\\\1", text).replace("](", "]\\(")
