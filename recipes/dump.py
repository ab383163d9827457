"""A recipe written out in full, as YAML that loads again. Pure.

What was set and what is merely the default stay apart, under `defaults:`, so that a written-out
recipe is judged like the one it came from: a set value that nothing reads is an error, a default
is not.
"""

from collections.abc import Mapping
from typing import Any

from recipes.problems import DEFAULT
from recipes.references import escape
from recipes.yaml_marks import scalar_text
from trainer.config import JobConfig
from trainer.reads import leaves_of


def resolved_text(recipe: JobConfig, origins: Mapping[str, str], *, title: str) -> str:
    """YAML of every value, each set one with its origin as a comment."""
    given: dict[str, Any] = {}
    assumed: dict[str, Any] = {}
    for key, value in leaves_of(recipe):
        origin = origins[key]
        is_default = origin == str(DEFAULT)
        _put(assumed if is_default else given, key, _line_end(value, "" if is_default else origin))
    lines = [f"# {title}", *_lines(given, ""), "defaults:", *_lines(assumed, "  ")]
    return "\n".join(lines) + "\n"


def _put(tree: dict[str, Any], key: str, text: str) -> None:
    *sections, name = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
    tree[name] = text


def _line_end(value: Any, origin: str) -> str:
    plain = [escape(item) for item in value] if isinstance(value, tuple) else escape(value)
    return scalar_text(plain) + (f"  # {origin}" if origin else "")


def _lines(tree: Mapping[str, Any], indent: str) -> list[str]:
    lines = []
    for name, value in tree.items():
        if isinstance(value, str):
            lines.append(f"{indent}{name}: {value}")
        else:
            lines += [f"{indent}{name}:", *_lines(value, indent + "  ")]
    return lines
