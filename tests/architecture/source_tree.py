"""The repository's Python files as syntax trees, and what they import. Nothing is executed."""

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("cluster", "comms", "offload", "parallel", "recipes", "trainer")
UNKNOWN = "<computed at run time>"


@dataclass(frozen=True)
class Source:
    """One file. `path` is relative to the repository, with forward slashes."""

    path: str
    text: str
    tree: ast.Module

    @property
    def module(self) -> str:
        """Import name."""
        parts = self.path.removesuffix(".py").split("/")
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def package(self) -> str:
        """Top-level package."""
        return self.path.split("/")[0]


@dataclass(frozen=True)
class Import:
    """One import, at the top of a file, inside a function, or through importlib."""

    path: str
    line: int
    importer: str
    target: str
    """The module, as deep as the tree knows it; for other libraries as written."""

    @property
    def top(self) -> str:
        """Top-level package of the target."""
        return self.target.split(".")[0]

    def __str__(self) -> str:
        return f"{self.path}:{self.line} imports {self.target}"


def planted(path: str, text: str) -> Source:
    """A source that exists only in a test."""
    return Source(path, text, ast.parse(text, path))


@cache
def package_sources() -> tuple[Source, ...]:
    """Every file of the packages."""
    return _read(PACKAGES)


@cache
def all_sources() -> tuple[Source, ...]:
    """Every Python file that people maintain, tests and benchmarks included."""
    return _read((*PACKAGES, "benchmarks", "tests"))


def unparsable() -> list[str]:
    """Files left out above because they are no Python, so that one does not fail every rule."""
    found = [_parsed(path) for path in _paths((*PACKAGES, "benchmarks", "tests"))]
    return [error for error in found if isinstance(error, str)]


def read(path: str) -> str:
    """Text of a file of the repository."""
    return (REPOSITORY / path).read_text(encoding="utf-8")


def imports(sources: Sequence[Source]) -> Iterator[Import]:
    """Every import of `sources`; `from package import module` counts as the module."""
    modules = {source.module for source in sources} | {s.module for s in package_sources()}
    for source in sources:
        for node in ast.walk(source.tree):
            for target in _targets(source, node, modules):
                yield Import(source.path, node.lineno, source.module, target)


def dotted(node: ast.AST) -> str:
    """`a.b.c` of a name or attribute expression, else an empty string."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        left = dotted(node.value)
        return f"{left}.{node.attr}" if left else ""
    return ""


def _read(folders: Sequence[str]) -> tuple[Source, ...]:
    found = [_parsed(path) for path in _paths(folders)]
    return tuple(source for source in found if isinstance(source, Source))


@cache
def _parsed(path: str) -> Source | str:
    """The file, or where it stops being Python."""
    try:
        return planted(path, read(path))
    except SyntaxError as error:
        return f"{path}:{error.lineno} {error.msg}"


def _paths(folders: Sequence[str]) -> list[str]:
    files = sorted(file for folder in folders for file in (REPOSITORY / folder).rglob("*.py"))
    return [file.relative_to(REPOSITORY).as_posix() for file in files]


def _targets(source: Source, node: ast.AST, modules: set[str]) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = _absolute(source, node)
        deeper = [f"{base}.{alias.name}" for alias in node.names]
        return sorted({name if name in modules else base for name in deeper})
    if isinstance(node, ast.Call) and dotted(node.func) in (
        "importlib.import_module",
        "import_module",
        "__import__",
    ):
        name = node.args[0] if node.args else None
        literal = isinstance(name, ast.Constant) and isinstance(name.value, str)
        return [name.value] if literal else [UNKNOWN]
    return []


def _absolute(source: Source, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = source.path.removesuffix(".py").split("/")[: -node.level]
    return ".".join([*parts, node.module] if node.module else parts)
