"""What a run does beside its ranks, in a thread of the driver."""

from typing import Any, Protocol

from cluster.view import RunView


class Beside(Protocol):
    """The driver's main thread tells it of the ranks."""

    def began(self, generation: int, first: Any) -> None:
        """Ranks were started; `first` is the actor of rank 0."""

    def lost(self) -> None:
        """They work together no more. Called before others are put together."""

    def step(self, record: dict[str, Any]) -> None:
        """Rank 0 reported a step."""

    def check(self, view: RunView) -> None:
        """Show what there is to say. Raises what ended it."""


class Nothing:
    """Of a run that only trains."""

    def began(self, generation: int, first: Any) -> None:
        """See `Beside`."""

    def lost(self) -> None:
        """See `Beside`."""

    def step(self, record: dict[str, Any]) -> None:
        """See `Beside`."""

    def check(self, view: RunView) -> None:
        """See `Beside`."""
