"""A wait that is seen: it has a deadline, says what is missing, and ends when asked to stop."""

import time
from collections.abc import Callable

from cluster.signals import StopSignals
from cluster.view import RunView

REPEAT_S = 10.0
"""A phase that lasts is named again after this long."""


class Waiting:
    """One start-up phase of the driver."""

    def __init__(
        self,
        phase: str,
        *,
        deadline_s: float,
        view: RunView,
        stop: StopSignals,
        clock: Callable[[], float],
    ) -> None:
        self.phase = phase
        self.deadline_s = deadline_s
        self._view = view
        self._stop = stop
        self._clock = clock
        self._began_s = self._said_s = clock()
        view.phase(phase, "")

    @property
    def elapsed_s(self) -> float:
        """Seconds since the phase began."""
        return self._clock() - self._began_s

    def overrun(self, missing: str) -> bool:
        """Whether the deadline has passed. Call it often; says `missing` now and then.

        Raises StopRequested after a signal.
        """
        self._stop.check(self.phase)
        if self._clock() - self._said_s >= REPEAT_S:
            self._said_s = self._clock()
            self._view.phase(self.phase, f"{self.elapsed_s:.0f} s; {missing}")
        return self.elapsed_s > self.deadline_s


class Phases:
    """The driver's own phases, one after the other; remembers which one it is in."""

    def __init__(
        self, view: RunView, stop: StopSignals, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.current = "connecting"
        self._view = view
        self._stop = stop
        self._clock = clock

    def begin(self, phase: str, *, deadline_s: float = float("inf")) -> Waiting:
        """Enter `phase` and say so. Raises StopRequested after a signal."""
        self.current = phase
        self._stop.check(phase)
        return Waiting(
            phase, deadline_s=deadline_s, view=self._view, stop=self._stop, clock=self._clock
        )
