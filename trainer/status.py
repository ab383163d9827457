"""What a process is doing right now, readable from another thread while it works or waits."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A reading of a `Status`."""

    phase: str
    step: int
    since_s: float
    """When the phase began, by the monotonic clock of this process's host."""


class Status:
    """Phase and step of one process. Start-up phases, in order: `starting`, `preparing`,
    `joining`, `building`, `loading`, `first_step`; then `training`, `stopping`, `done`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self.listener: Callable[[str], None] | None = None
        """Hears of every phase, in the thread that begins it."""

        self._moment = Moment(phase="starting", step=0, since_s=clock())

    def enter(self, phase: str, step: int | None = None) -> None:
        """Begin `phase`; the step stays unless given."""
        with self._lock:
            step = self._moment.step if step is None else step
            self._moment = Moment(phase=phase, step=step, since_s=self._clock())
        if self.listener is not None:
            self.listener(phase)

    def read(self) -> Moment:
        """The current phase. Any thread may call it."""
        with self._lock:
            return self._moment
