"""`${section.key}` stands for another value of the recipe. Pure.

Guarantees, each asserted in tests/recipes/test_references.py:
- a value that is one reference keeps the type of what it refers to;
- references inside text are written out;
- references may refer to references, never to themselves;
- `$${` is a literal `${`.
"""

import re
from collections.abc import Mapping
from typing import Any

from recipes.aliases import unknown_key
from recipes.keys import KeyTable
from recipes.problems import Problem
from recipes.tree import find
from recipes.yaml_marks import Entry, Tree, Value, scalar_text

_TOKEN = re.compile(r"\$\$\{|\$\{(?P<key>[^{}]*)\}|\$\{")
_WHOLE = re.compile(r"^\$\{(?P<key>[^{}]*)\}$")


def escape(value: Value) -> Value:
    """Text that means itself."""
    return value.replace("${", "$${") if isinstance(value, str) else value


class References:
    """Writes out the references of one tree."""

    def __init__(
        self, tree: Tree, table: KeyTable, defaults: Mapping[str, Any], problems: list[Problem]
    ) -> None:
        self._tree = tree
        self._table = table
        self._defaults = defaults
        self._problems = problems

    def resolved(self) -> dict[str, Entry]:
        """The tree without references. Mistakes are reported once, and become null."""
        return self._section(self._tree, "")

    def _section(self, tree: Tree, prefix: str) -> dict[str, Entry]:
        resolved = {}
        for name, entry in tree.items():
            key = prefix + name
            if isinstance(entry.value, dict):
                value: Value = self._section(entry.value, f"{key}.")
            else:
                try:
                    value = self._value(entry.value, (key,))
                except _ReferenceError as error:
                    self._problems.append(Problem(entry.origin, key, str(error)))
                    continue
            resolved[name] = Entry(value, entry.origin)
        return resolved

    def _value(self, value: Value, chain: tuple[str, ...]) -> Value:
        if isinstance(value, list):
            return [self._value(item, chain) for item in value]
        if not isinstance(value, str):
            return value
        whole = _WHOLE.match(value)
        if whole is not None:
            return self._look_up(whole["key"], chain)
        return _TOKEN.sub(lambda match: self._written_out(match, value, chain), value)

    def _written_out(self, match: re.Match[str], text: str, chain: tuple[str, ...]) -> str:
        if match[0] == "$${":
            return "${"
        if match["key"] is None:
            raise _ReferenceError(f"{text!r} opens a reference and does not close it")
        value = self._look_up(match["key"], chain)
        return value if isinstance(value, str) else scalar_text(value)

    def _look_up(self, key: str, chain: tuple[str, ...]) -> Value:
        if key in chain:
            circle = " -> ".join([*chain[chain.index(key) :], key])
            raise _ReferenceError(f"references go in a circle: {circle}")
        entry = find(self._tree, key)
        if entry is not None and not isinstance(entry.value, dict):
            return self._value(entry.value, (*chain, key))
        if key in self._defaults and entry is None:
            return self._defaults[key]
        raise _ReferenceError(f"${{{key}}} refers to nothing: {self._reason(key)}")

    def _reason(self, key: str) -> str:
        if key not in self._table:
            return f"{key}: {unknown_key(key, self._table)}"
        if key in self._table.sections:
            return f"{key} is a section; name one of its keys"
        return f"{key} is not set"


class _ReferenceError(Exception):
    """A reference that cannot be written out."""
