"""Plain values become a `Recipe`, or a list of everything wrong with them. Pure.

Every mistake is reported, not just the first: what is wrong is taken out and the rest looked at
again. A rule that involves a value taken out is not judged, because its default may break it.
"""

import json
import math
import re
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from recipes.aliases import unknown_key
from recipes.keys import KeyTable, choices_of, describe, key_table, options
from recipes.problems import DEFAULT, Origin, Problem
from recipes.schema import ADAPTER, Recipe
from recipes.suggestions import nearest
from recipes.tree import find, plain, plain_value, without
from recipes.yaml_marks import Tree, scalar_text

_MENTION = re.compile(r"[a-z_]\w*(?:\.[a-z_]\w*)+|[a-z_]\w*(?==)")


@dataclass(frozen=True)
class Finding:
    """A problem and the keys that it is about."""

    problem: Problem
    keys: frozenset[str]

    def touches(self, keys: set[str]) -> bool:
        """Whether it is about one of `keys`, or about something below or above one."""
        return any(_related(mine, other) for mine in self.keys for other in keys)


def _related(one: str, other: str) -> bool:
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")


def validate(tree: Tree, problems: list[Problem]) -> Recipe | None:
    """The recipe that `tree` spells; None where anything was wrong, which is in `problems`.

    Keys with earlier problems count as taken out.
    """
    removed = {problem.key for problem in problems if problem.key}
    while True:
        try:
            recipe = ADAPTER.validate_json(json.dumps(plain(tree)))
        except ValidationError as error:
            found = [_finding(details, tree) for details in error.errors()]
        else:
            return None if problems else recipe
        problems.extend(finding.problem for finding in found if not finding.touches(removed))
        keys = {key for finding in found for key in finding.keys}
        rest = without(tree, keys)
        if rest == tree:
            return None
        removed |= keys
        tree = rest


def _finding(details: ErrorDetails, tree: Tree) -> Finding:
    table = key_table(Recipe)
    unknown = details["type"] == "unexpected_keyword_argument"
    key = _dotted(details["loc"], table, unknown=unknown)
    if unknown:
        message = unknown_key(key, table)
    elif details["type"] == "value_error":
        return _broken_rule(key, str(details["ctx"]["error"]), tree, table)
    else:
        message = _wrong_type(key, table, details["input"])
    return Finding(Problem(_origin(tree, key), key, message), frozenset([key]))


def _dotted(loc: tuple[int | str, ...], table: KeyTable, *, unknown: bool) -> str:
    """The key that pydantic's location names, without its marks of union members and items."""
    key = ""
    for position, part in enumerate(loc):
        below = f"{key}.{part}" if key else str(part)
        if below in table or (unknown and position == len(loc) - 1):
            key = below
    return key


def _origin(tree: Tree, key: str) -> Origin:
    while key:
        entry = find(tree, key)
        if entry is not None:
            return entry.origin
        key = key.rpartition(".")[0]
    return DEFAULT


def _wrong_type(key: str, table: KeyTable, value: Any) -> str:
    annotation = table.leaves.get(key)
    if annotation is None:
        return f"expected a section of keys, got {_shown(value)}"
    return f"expected {describe(annotation)}, got {_shown(value)}{_remedy(annotation, value)}"


def _remedy(annotation: Any, value: Any) -> str:
    members = options(annotation)
    if isinstance(value, float) and not math.isfinite(value):
        return "; it must be finite"
    if isinstance(value, float) and value.is_integer() and int in members:
        return f"; write {int(value)}"
    if isinstance(value, str):
        close = nearest(value, choices_of(annotation))
        return f"; did you mean `{close}`?" if close else ""
    if str in members and isinstance(value, bool | int | float):
        return "; put it in quotes"
    return ""


def _shown(value: Any) -> str:
    kind = {
        str: "text",
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        list: "a list",
        dict: "a section",
        type(None): "nothing",
    }[type(value)]
    if value is None or isinstance(value, dict):
        return kind
    return f"{scalar_text(plain_value(value))} ({kind})"


def _broken_rule(section: str, message: str, tree: Tree, table: KeyTable) -> Finding:
    """A rule speaks of keys by name; the lines where they are set go with it."""
    keys = _mentioned(section, message, table) or [section]
    places = {key: entry.origin for key in keys if (entry := find(tree, key)) is not None}
    main = next(iter(places), keys[0])
    others = [
        f"{key} is set {_at(places[key])}" if key in places else f"{key} has its default"
        for key in keys
        if key != main and key in table.leaves
    ]
    note = f" ({'; '.join(others)})" if others else ""
    return Finding(Problem(_origin(tree, main), main, message + note), frozenset(keys))


def _at(origin: Origin) -> str:
    return f"at {origin}" if origin.line else f"on the {origin}"


def _mentioned(section: str, message: str, table: KeyTable) -> list[str]:
    found: list[str] = []
    for word in _MENTION.findall(message):
        around = section
        while around and f"{around}.{word}" not in table:
            around = around.rpartition(".")[0]
        key = f"{around}.{word}" if around else word
        if key in table and key not in found:
            found.append(key)
    return found
