"""What a run does beside its ranks, in a thread of the driver."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cluster.view import RunView


@dataclass(frozen=True, kw_only=True)
class Wish:
    """That another number of ranks goes on."""

    ranks: int
    bundles: tuple[int, ...] = ()
    """Places, in the run's placement group, that are given up for it."""


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

    def wish(self) -> Wish | None:
        """What it wishes since it was last asked."""

    def given(self, bundles: Sequence[int], refused: str) -> None:
        """These places are its own from now on; `refused` is why its wish cannot be had, if so."""


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

    def wish(self) -> Wish | None:
        """See `Beside`."""
        return None

    def given(self, bundles: Sequence[int], refused: str) -> None:
        """See `Beside`."""
