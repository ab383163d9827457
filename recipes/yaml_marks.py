"""YAML text as plain values that know their line. Nothing is constructed but text, numbers,
true/false, null, lists and mappings.

Scalars follow the core schema of YAML 1.2: `1e-3` is a number, and `no`, `on` or `12:30` are text.
Aliases are refused, because a recipe has references, and because nested ones grow without bound.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.events import AliasEvent
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from recipes.problems import Origin, Problem

_TAG = "tag:yaml.org,2002:"
_FLOAT = re.compile(
    r"""^[-+]?(?:(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?
    |[0-9][0-9_]*[eE][-+]?[0-9]+|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$""",
    re.VERBOSE,
)
_RESOLVERS = (
    ("null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("int", re.compile(r"^[-+]?(?:0|[1-9][0-9_]*)$"), list("-+0123456789")),
    ("float", _FLOAT, list("-+0123456789.")),
)

Value = Any
"""A scalar, a list of values, or a dict of `Entry`."""


@dataclass(frozen=True)
class Entry:
    """A value and where it was written."""

    value: Value
    origin: Origin


Tree = Mapping[str, Entry]


class RecipeLoader(yaml.SafeLoader):
    """Composes nodes with the scalars of YAML 1.2 and without aliases."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own declaration

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        """Refuse aliases, then compose as usual."""
        if self.check_event(AliasEvent):
            event = self.peek_event()
            raise ComposerError(
                None,
                None,
                "aliases are not allowed; refer to another value with ${section.key}",
                event.start_mark,
            )
        return super().compose_node(parent, index)


class RecipeDumper(yaml.SafeDumper):
    """Quotes exactly what `RecipeLoader` would otherwise not read back as text."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own declaration


for _name, _pattern, _first in _RESOLVERS:
    RecipeLoader.add_implicit_resolver(_TAG + _name, _pattern, _first)
    RecipeDumper.add_implicit_resolver(_TAG + _name, _pattern, _first)


def scalar_text(value: Value) -> str:
    """A scalar or flat list as one line of YAML."""
    if isinstance(value, str) and "\n" in value:
        return json.dumps(value)
    text = yaml.dump(
        value, Dumper=RecipeDumper, default_flow_style=True, allow_unicode=True, width=10**9
    )
    return text.removesuffix("\n").removesuffix("\n...")


class MarkedReader:
    """Turns YAML text into entries, collecting mistakes on the way."""

    def __init__(self, place: str, problems: list[Problem], *, lines: bool = True) -> None:
        self._place = place
        self._problems = problems
        self._lines = lines

    def read(self, text: str) -> Entry | None:
        """The document in `text`; None where it is empty or not YAML."""
        loader = None
        try:
            loader = RecipeLoader(text)
            node = loader.get_single_node()
            return None if node is None else self._entry(node, "")
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            self._report(mark.line + 1 if mark else 0, "", f"not valid YAML: {error.problem}")
        except yaml.YAMLError as error:
            self._report(0, "", f"not valid YAML: {error}")
        except RecursionError:
            self._report(0, "", "not valid YAML: nested too deeply")
        finally:
            if loader is not None:
                loader.dispose()
        return None

    def _report(self, line: int, key: str, message: str) -> None:
        self._problems.append(Problem(self._origin(line), key, message))

    def _origin(self, line: int) -> Origin:
        return Origin(self._place, line if self._lines else 0)

    def _entry(self, node: Node, key: str) -> Entry:
        line = node.start_mark.line + 1
        if isinstance(node, MappingNode):
            return Entry(self._mapping(node, key), self._origin(line))
        if isinstance(node, SequenceNode):
            values = [self._entry(item, key).value for item in node.value]
            return Entry(values, self._origin(line))
        assert isinstance(node, ScalarNode)
        return Entry(self._scalar(node, key), self._origin(line))

    def _mapping(self, node: MappingNode, prefix: str) -> dict[str, Entry]:
        entries: dict[str, Entry] = {}
        for name_node, value_node in node.value:
            line = name_node.start_mark.line + 1
            if not isinstance(name_node, ScalarNode):
                self._report(line, prefix, "a key must be a word")
                continue
            key = f"{prefix}.{name_node.value}" if prefix else name_node.value
            if name_node.value in entries:
                first = entries[name_node.value].origin
                self._report(line, key, f"written twice, first at {first}; remove one")
                continue
            value = self._entry(value_node, key).value
            # The key's line, since a value may begin further down.
            entries[name_node.value] = Entry(value, self._origin(line))
        return entries

    def _scalar(self, node: ScalarNode, key: str) -> Value:
        text = node.value
        try:
            match node.tag.removeprefix(_TAG):
                case "str":
                    return text
                case "null":
                    return None
                case "bool" if text.lower() in ("true", "false"):
                    return text.lower() == "true"
                case "int":
                    return int(text.replace("_", ""))
                case "float":
                    return float(
                        text.replace("_", "").replace(".inf", "inf").replace(".nan", "nan")
                    )
        except ValueError:
            pass
        self._report(
            node.start_mark.line + 1, key, f"the tag {node.tag!r} is not allowed here; remove it"
        )
        return None
