"""Values set on the command line: `a.b=value`, `--a.b=value`, `--a.b value`, `--a.b`/`--no-a.b`.

Pure. Guarantees, each asserted in tests/recipes/test_overrides.py:
- all spellings of one override mean the same;
- a later override wins over an earlier one;
- the value of a text key is taken literally, any other value is YAML.
"""

import re
from collections.abc import Sequence
from typing import Any

from recipes.aliases import unknown_key
from recipes.keys import KeyTable, options
from recipes.problems import COMMAND_LINE, Problem
from recipes.tree import merge, nest
from recipes.yaml_marks import Entry, MarkedReader

_ASSIGNMENT = re.compile(r"^(?P<key>[A-Za-z_][\w.-]*)=(?P<value>.*)$", re.DOTALL)


def parse_overrides(
    tokens: Sequence[str], table: KeyTable, problems: list[Problem]
) -> dict[str, Entry]:
    """The tree that the tokens describe; mistakes are added to `problems`."""
    tree: dict[str, Entry] = {}
    left = list(tokens)
    while left:
        token = left.pop(0)
        if token.startswith("--"):
            key, text = _flag(token[2:], left, table, problems)
        else:
            key, text = _assignment(token, problems)
        if key is not None and text is not None:
            tree = merge(tree, nest(key, _value(key, text, table, problems)))
    return tree


def _assignment(token: str, problems: list[Problem]) -> tuple[str | None, str | None]:
    match = _ASSIGNMENT.match(token)
    if match is None:
        message = f"{token!r} is not an override; write section.key=value or --section.key value"
        problems.append(Problem(COMMAND_LINE, "", message))
        return None, None
    return match["key"], match["value"]


def _flag(
    flag: str, left: list[str], table: KeyTable, problems: list[Problem]
) -> tuple[str | None, str | None]:
    name, equals, text = flag.partition("=")
    key = name.replace("-", "_")
    if equals:
        return key, text
    positive = key.removeprefix("no_")
    if key not in table and positive != key and positive in table:
        if _is_boolean(positive, table):
            return positive, "false"
        _problem(positive, f"`--{name}` is for true or false keys; give a value", problems)
        return None, None
    if key not in table:
        _problem(key, unknown_key(key, table), problems)
        # What follows was meant as its value; do not report it a second time.
        if left and not left[0].startswith("--") and not _ASSIGNMENT.match(left[0]):
            left.pop(0)
        return None, None
    if _is_boolean(key, table):
        is_value = bool(left) and left[0].lower() in ("true", "false")
        return key, left.pop(0) if is_value else "true"
    if not left or left[0].startswith("--"):
        _problem(key, f"`--{name}` needs a value", problems)
        return None, None
    return key, left.pop(0)


def _value(key: str, text: str, table: KeyTable, problems: list[Problem]) -> Entry:
    if options(table.leaves.get(key)) == (str,):
        # A shell has taken the quotes that would mark `2024` as text.
        return Entry(text, COMMAND_LINE)
    found: list[Problem] = []
    entry = MarkedReader(COMMAND_LINE.place, found, lines=False).read(text)
    problems.extend(Problem(COMMAND_LINE, key, problem.message) for problem in found)
    return entry if entry is not None else Entry(None, COMMAND_LINE)


def _is_boolean(key: str, table: KeyTable) -> bool:
    annotation: Any = table.leaves.get(key)
    return annotation is bool


def _problem(key: str, message: str, problems: list[Problem]) -> None:
    problems.append(Problem(COMMAND_LINE, key, message))
