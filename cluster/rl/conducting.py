"""The driver's thread that conducts a run by rewards: it passes messages and keeps the ledger safe.

What is decided is decided in `trainer.rl.conducting`, which is pure; here messages come in, and
what they lead to goes out. The snapshot of the ledger is on disk before a step's batch leaves.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

from ray.exceptions import RayError

from cluster.beside import Wish
from cluster.rl.gauges import RewardGauges
from cluster.rl.state import read_state
from cluster.rl.turns import Began, Given, Lost, News, Parts, Turns
from cluster.view import RunView
from trainer.errors import BraidError, InfrastructureError

_CLOSE_S = 10.0


@dataclass
class Conducting:
    """Starts with `open`; the main thread calls all public methods."""

    parts: Parts
    gauges: RewardGauges
    clock: Callable[[], float] = time.monotonic

    _news: SimpleQueue[News] = field(default_factory=SimpleQueue, init=False)
    _warnings: deque[str] = field(default_factory=deque, init=False)
    _wishes: deque[Wish] = field(default_factory=deque, init=False)
    _closing: threading.Event = field(default_factory=threading.Event, init=False)
    _thread: ThreadPoolExecutor = field(init=False)
    _work: Future[None] | None = field(default=None, init=False)
    _current: Began | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="conducting")

    def open(self) -> None:
        """Start the thread, and with it the workers that sample."""
        self._work = self._thread.submit(self._conduct)

    def began(self, generation: int, first: Any) -> None:
        """Ranks were started; `first` is the actor of rank 0."""
        self._current = Began(generation, first)
        self._news.put(self._current)

    def lost(self) -> None:
        """They failed. Rank 0 is told that no messages will come, so that it does not wait."""
        if self._current is not None:
            self._current.first.hang_up.remote(self._current.generation)
            self._current = None
        self._news.put(Lost())

    def step(self, record: dict[str, Any]) -> None:
        """Export what rank 0 reported of a step."""
        self.gauges.write(record)

    def check(self, view: RunView) -> None:
        """Show what there is to say. Raises what ended the thread."""
        while self._warnings:
            view.warning(self._warnings.popleft())
        if self._work is None or not self._work.done():
            return
        error = self._work.exception()
        if isinstance(error, BraidError | RayError | OSError):
            raise error
        if error is not None:
            raise InfrastructureError(
                f"the thread that conducts rollouts failed: {type(error).__name__}: {error}"
            ) from error

    def wish(self) -> Wish | None:
        """That places change hands; None where there is no such wish."""
        return self._wishes.popleft() if self._wishes else None

    def given(self, bundles: Sequence[int], refused: str) -> None:
        """These places are for sampling from now on."""
        self._news.put(Given(bundles=tuple(bundles), refused=refused))

    def close(self) -> None:
        """End the thread and all that it started. May be called in any state."""
        self._closing.set()
        if self._work is not None:
            # Not for long: it may be waiting for a store or a function that never comes up.
            wait_for([self._work], timeout=_CLOSE_S)
        self._thread.shutdown(wait=False, cancel_futures=True)
        self.parts.rollouts.close()

    def _conduct(self) -> None:
        with ExitStack() as stack:
            rewards = None
            if self.parts.open_rewards is not None:
                rewards = stack.enter_context(closing(self.parts.open_rewards()))
            state = read_state(self.parts.folder)
            conductor = self.parts.conductor(self.parts.store.open(), state)
            turns = Turns(self.parts, conductor, rewards, self._warnings, self._wishes, self.clock)
            while not self._closing.is_set():
                turns.hear(self._taken_news())
                turns.turn()
            turns.end()

    def _taken_news(self) -> list[News]:
        found: list[News] = []
        while True:
            try:
                found.append(self._news.get_nowait())
            except Empty:
                return found
