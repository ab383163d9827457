"""The keys that a recipe may have, read off the dataclasses. Pure."""

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class KeyTable:
    """All dotted keys of a dataclass with nested dataclasses."""

    leaves: Mapping[str, Any]
    """Key and annotation of everything that takes a value, optional sections included."""

    sections: frozenset[str]
    """Keys that take a mapping, optional sections included."""

    def __contains__(self, key: str) -> bool:
        return key in self.leaves or key in self.sections

    def children(self, section: str) -> tuple[str, ...]:
        """Keys directly below `section`; the empty string is the top."""
        depth = section.count(".") + 1 if section else 0
        prefix = f"{section}." if section else ""
        known = sorted({*self.leaves, *self.sections})
        return tuple(k for k in known if k.startswith(prefix) and k.count(".") == depth)


@cache
def key_table(cls: type) -> KeyTable:
    """The keys of dataclass `cls`."""
    leaves: dict[str, Any] = {}
    sections: set[str] = set()
    for key, annotation in _walk(cls, ""):
        section = section_type(annotation)
        if section is not None:
            sections.add(key)
        if section is None or section is not annotation:
            leaves[key] = annotation
    return KeyTable(leaves, frozenset(sections))


def section_type(annotation: Any) -> type | None:
    """The dataclass that `annotation` is or may be, if any."""
    for option in options(annotation):
        if isinstance(option, type) and is_dataclass(option):
            return option
    return None


def options(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or the annotation alone."""
    if get_origin(annotation) in (Union, UnionType):
        return get_args(annotation)
    return (annotation,)


def _walk(cls: type, prefix: str) -> Iterator[tuple[str, Any]]:
    hints = get_type_hints(cls)
    for field in fields(cls):
        key = prefix + field.name
        yield key, hints[field.name]
        section = section_type(hints[field.name])
        if section is not None:
            yield from _walk(section, f"{key}.")


def nested_dataclasses(cls: type) -> list[type]:
    """`cls` and every dataclass below it, each once."""
    found = [cls]
    for _, annotation in _walk(cls, ""):
        section = section_type(annotation)
        if section is not None and section not in found:
            found.append(section)
    return found


def documentation(cls: type) -> dict[str, str]:
    """The string under each field of `cls`, inherited fields included, on one line."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if is_dataclass(base):
            texts |= _documentation_of(base)
    return texts


def _documentation_of(cls: type) -> dict[str, str]:
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(tree, ast.ClassDef)
    texts = {}
    for statement, following in zip(tree.body, tree.body[1:], strict=False):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
            and isinstance(following.value.value, str)
        ):
            texts[statement.target.id] = " ".join(following.value.value.split())
    return texts


_WORDS = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    NoneType: "null",
}


def describe(annotation: Any) -> str:
    """What may be written for `annotation`, in words."""
    return " or ".join(_describe_one(option) for option in options(annotation))


def _describe_one(option: Any) -> str:
    if get_origin(option) is Literal:
        choices = [f"`{choice}`" for choice in get_args(option)]
        return choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}"
    if get_origin(option) is tuple and get_args(option)[-1] is ...:
        return f"a list, each {describe(get_args(option)[0])}"
    if get_origin(option) is tuple:
        return f"a list of {len(get_args(option))}, each {describe(get_args(option)[0])}"
    if is_dataclass(option):
        return "a section of keys"
    return _WORDS[option]


def choices_of(annotation: Any) -> tuple[str, ...]:
    """The words that `annotation` lists, if it does."""
    return tuple(
        choice
        for option in options(annotation)
        if get_origin(option) is Literal
        for choice in get_args(option)
    )
