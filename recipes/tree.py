"""Nested entries of a recipe: merged, flattened, cut. Pure."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from recipes.yaml_marks import Entry, Tree, Value


def merge(under: Tree, over: Tree) -> dict[str, Entry]:
    """`over` on top of `under`: sections are merged key by key, everything else is replaced."""
    merged = dict(under)
    for name, entry in over.items():
        below = merged.get(name)
        if below is not None and isinstance(below.value, dict) and isinstance(entry.value, dict):
            entry = Entry(merge(below.value, entry.value), entry.origin)
        merged[name] = entry
    return merged


def nest(key: str, entry: Entry) -> dict[str, Entry]:
    """A tree that holds `entry` at the dotted `key` and nothing else."""
    for name in reversed(key.split(".")):
        tree = {name: entry}
        entry = Entry(tree, entry.origin)
    return tree


def find(tree: Tree, key: str) -> Entry | None:
    """The entry at the dotted `key`."""
    name, _, rest = key.partition(".")
    entry = tree.get(name)
    if entry is None or not rest:
        return entry
    return find(entry.value, rest) if isinstance(entry.value, dict) else None


def leaves(tree: Tree, prefix: str = "") -> Iterator[tuple[str, Entry]]:
    """Dotted key and entry of everything that is not a section with keys."""
    for name, entry in tree.items():
        if isinstance(entry.value, dict) and entry.value:
            yield from leaves(entry.value, f"{prefix}{name}.")
        else:
            yield prefix + name, entry


def without(tree: Tree, keys: Iterable[str], prefix: str = "") -> dict[str, Entry]:
    """The tree less the dotted `keys`."""
    gone = set(keys)
    kept = {}
    for name, entry in tree.items():
        key = prefix + name
        if key in gone:
            continue
        if isinstance(entry.value, dict):
            entry = Entry(without(entry.value, gone, f"{key}."), entry.origin)
        kept[name] = entry
    return kept


def plain(tree: Tree) -> dict[str, Any]:
    """The values alone."""
    return {name: plain_value(entry.value) for name, entry in tree.items()}


def plain_value(value: Value) -> Any:
    """One value without its marks."""
    if isinstance(value, dict):
        return plain(value)
    if isinstance(value, list):
        return [plain_value(item) for item in value]
    return value


def as_defaults(tree: Tree) -> dict[str, Entry]:
    """The tree with every entry counted as a default."""
    return {
        name: Entry(
            as_defaults(entry.value) if isinstance(entry.value, dict) else entry.value,
            replace(entry.origin, is_default=True),
        )
        for name, entry in tree.items()
    }
