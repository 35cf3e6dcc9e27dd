"""What a module defines, read from its source: nothing is imported, so nothing that a page shows hangs on a machine."""

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

HOUSE = Path(__file__).parents[1]
Node = ast.ClassDef | ast.FunctionDef


@dataclass(frozen=True, eq=False)
class Defined:
    """A class or function where it is defined. module: its file, "" for the package itself."""

    module: str
    node: Node

    @property
    def name(self) -> str:
        return self.node.name

    @property
    def docstring(self) -> str:
        return ast.get_docstring(self.node) or ""

    @property
    def is_dataclass(self) -> bool:
        return any("dataclass" in ast.unparse(one) for one in self.node.decorator_list)

    def bases(self) -> list["Defined"]:
        """Those of its bases that regard defines."""
        if isinstance(self.node, ast.FunctionDef):
            return []
        names = [ast.unparse(base).split("[")[0] for base in self.node.bases]
        return [found for name in names if (found := find(self.module, name)) is not None]

    def members(self) -> list["Defined"]:
        """Public methods and properties of a class, those of an overload once."""
        if isinstance(self.node, ast.FunctionDef):
            return []
        functions = [one for one in self.node.body if isinstance(one, ast.FunctionDef)]
        public = [one for one in functions if not one.name.startswith("_") and not _repeated(one)]
        return [Defined(self.module, one) for one in public]

    def said(self, member: "Defined") -> str:
        """The docstring of a member: its own, or that of the method it overrides."""
        if member.docstring:
            return member.docstring
        for base in self.bases():
            for other in base.members():
                if other.name == member.name:
                    return base.said(other)
        return next((said for base in self.bases() if (said := base.said(member))), "")

    def made_by(self) -> ast.FunctionDef | None:
        """The `__init__` of a class, or that of the first base that has one."""
        if isinstance(self.node, ast.FunctionDef):
            return None
        for one in self.node.body:
            if isinstance(one, ast.FunctionDef) and one.name == "__init__":
                return one
        return next((made for base in self.bases() if (made := base.made_by()) is not None), None)

    def fields(self) -> list[ast.AnnAssign]:
        """Of a dataclass: its own, after those of its bases that are dataclasses too."""
        before = [field for base in self.bases() if base.is_dataclass for field in base.fields()]
        own = [one for one in self.node.body if isinstance(one, ast.AnnAssign) and _is_field(one)]
        named = {ast.unparse(one.target) for one in own}
        return [one for one in before if ast.unparse(one.target) not in named] + own


def file_of(module: str) -> Path:
    """Where a module is: "vlm.shorten", or "vlm" for a package's own file."""
    path = HOUSE.joinpath(*module.split(".")) if module else HOUSE
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def tree(module: str) -> ast.Module:
    """The source of a module."""
    return ast.parse(file_of(module).read_text(encoding="utf-8"))


@cache
def public(module: str) -> list[str]:
    """Its `__all__`, or every class and function that it defines under a name without an underscore before it."""
    for node in tree(module).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return [n.name for n in tree(module).body if isinstance(n, Node) and not n.name.startswith("_")]


@cache
def find(module: str, name: str) -> Defined | None:
    """Where a name of a module is defined, through whatever imports it; None where that is no class or function of
    regard.
    """
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("regard"):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return find((node.module or "").removeprefix("regard").lstrip("."), alias.name)
    for node in tree(module).body:
        if isinstance(node, Node) and node.name == name:
            return Defined(module, node)
    return None


def about(module: str) -> str:
    """The docstring of a module."""
    return ast.get_docstring(tree(module)) or ""


def _is_field(node: ast.AnnAssign) -> bool:
    return not ast.unparse(node.target).startswith("_") and "ClassVar" not in ast.unparse(node.annotation)


def _repeated(node: ast.FunctionDef) -> bool:
    marks = {ast.unparse(one) for one in node.decorator_list}
    return bool(marks & {"overload", "typing.overload"}) or any(mark.endswith(".setter") for mark in marks)
