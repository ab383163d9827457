"""Public names have one import path each: `public_names.txt`, a `module:name` per line.

Only what the file lists is public; the rest may change at any time. A listed name that moves,
disappears or loses its documentation fails here. The file is sorted, so that a change of the
public surface is one visible line of a diff.
"""

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from source_tree import Source, package_sources, planted

LIST = Path(__file__).with_name("public_names.txt")
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def entries() -> list[str]:
    lines = LIST.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def undocumented(source: Source, name: str) -> Iterator[str]:
    """What keeps `name` from being public: not defined here, or without a word on what it is."""
    for position, node in enumerate(source.tree.body):
        if isinstance(node, Definition) and node.name == name:
            yield from missing_docstrings(node)
            return
        if name in assigned_names(node):
            following = source.tree.body[position + 1 : position + 2]
            if not (following and is_string(following[0])):
                yield f"{name} has no docstring below it"
            return
    yield f"{name} is not defined in {source.path}"


def missing_docstrings(node: Definition) -> Iterator[str]:
    if not ast.get_docstring(node):
        yield f"{node.name} has no docstring"
    if isinstance(node, ast.ClassDef):
        for method in node.body:
            public = isinstance(method, Definition) and not method.name.startswith("_")
            if public and not ast.get_docstring(method):
                yield f"{node.name}.{method.name} has no docstring"


def assigned_names(node: ast.stmt) -> list[str]:
    targets = node.targets if isinstance(node, ast.Assign) else []
    targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
    return [target.id for target in targets if isinstance(target, ast.Name)]


def is_string(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def test_list_is_sorted_and_each_name_has_one_path():
    names = [entry.split(":")[1] for entry in entries()]
    assert entries() == sorted(entries())
    assert len(names) == len(set(names))


def test_public_names_are_defined_where_listed_and_documented():
    sources = {source.module: source for source in package_sources()}
    problems = []
    for entry in entries():
        module, name = entry.split(":")
        if module in sources:
            problems += [f"{entry}: {problem}" for problem in undocumented(sources[module], name)]
        else:
            problems.append(f"{entry}: there is no module {module}")
    assert problems == []


def test_public_names_can_be_imported():
    missing = []
    for entry in entries():
        module, name = entry.split(":")
        if name not in vars(importlib.import_module(module)):
            missing.append(entry)
    assert missing == []


def test_modules_of_public_names_say_what_they_are_for():
    modules = {entry.split(":")[0] for entry in entries()}
    sources = [source for source in package_sources() if source.module in modules]
    assert [source.path for source in sources if not ast.get_docstring(source.tree)] == []


@pytest.mark.parametrize(
    "text",
    [
        "def other():\n    'Documented.'",
        "from trainer.y import name",
        "def name():\n    return 1",
        "name = 1\nother = 2",
        "class name:\n    'Documented.'\n    def method(self):\n        return 1",
    ],
)
def test_an_unfit_public_name_is_found(text):
    assert len(list(undocumented(planted("trainer/x.py", text), "name"))) == 1
