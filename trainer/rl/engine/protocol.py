"""What rollout workers need of an engine: narrow enough for vLLM or SGLang behind it."""

from collections.abc import Iterable
from typing import Protocol

from torch import Tensor

from trainer.rl.engine.request import Answer, EngineStats, Request, Step


class RolloutEngine(Protocol):
    """Answers to many prompts at once. One thread calls it."""

    @property
    def idle(self) -> bool:
        """Whether nothing is asked for. Read it to decide whether to step."""

    def submit(self, request: Request) -> None:
        """Ask for answers. May be called between any two steps.

        Raises ValueError for what can never be answered: a prompt without room, an id in use.
        """

    def step(self) -> Step:
        """One forward for all that is under way. Called until the engine is idle."""

    def cancel(self, request_id: str) -> list[Answer]:
        """Give up the unfinished answers of a request and return them as far as they are."""

    def unfinished(self) -> list[Answer]:
        """All that is asked for and not finished, as far as it is. Called to save it."""

    def load(self, version: int, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Take new weights. Called between two steps; nothing under way is dropped.

        Raises ValueError, and keeps the old weights, unless every weight is there once.
        """

    def stats(self) -> EngineStats:
        """Counts so far."""
