"""Which configuration values were looked at: a key that nothing reads is a key that lies.

`watch(config)` returns an equal config whose field reads are recorded, nested sections included.
"""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from trainer.errors import RecipeError

T = TypeVar("T")


class ReadLog:
    """Dotted names of the leaves that were read through watched configs."""

    def __init__(self) -> None:
        self._read: set[str] = set()

    @property
    def read(self) -> frozenset[str]:
        """Every leaf read so far."""
        return frozenset(self._read)

    def note(self, *names: str) -> None:
        """Record that these leaves were read."""
        self._read.update(names)

    def watch(self, config: T, prefix: str = "") -> T:
        """An equal config, of a subclass of its type, that records reads of its leaves here."""
        kind = type(config)
        values = {
            field.name: self._watched(getattr(config, field.name), f"{prefix}{field.name}")
            for field in fields(config)  # type: ignore[arg-type]
        }
        leaves = {name for name, value in values.items() if not is_dataclass(value)}

        def getattribute(instance: Any, name: str) -> Any:
            if name in leaves:
                self.note(prefix + name)
            return object.__getattribute__(instance, name)

        watched_kind = type(kind.__name__, (kind,), {"__getattribute__": getattribute})
        watched: T = object.__new__(watched_kind)
        for name, value in values.items():
            object.__setattr__(watched, name, value)
        return watched

    def _watched(self, value: Any, name: str) -> Any:
        if is_dataclass(value) and not isinstance(value, type):
            return self.watch(value, prefix=f"{name}.")
        return value


def leaves_of(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of every leaf, in field order."""
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value) and not isinstance(value, type):
            yield from leaves_of(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value


def require_read(log: ReadLog, explicit: Mapping[str, str]) -> None:
    """Refuse keys that were set and that nothing read. `explicit`: dotted key to where it was set.

    Raises RecipeError naming every such key.
    """
    unread = sorted(set(explicit) - log.read)
    if unread:
        lines = [f"{explicit[key]}: {key} has no effect with these settings" for key in unread]
        raise RecipeError(
            "\n".join(lines) + "\nRemove them, or change the settings that make them idle."
        )
