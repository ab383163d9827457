"""What both sides of a run took over a window of steps. Pure; time is an argument.

Guarantees, each asserted in tests/trainer/rl/conducting/test_window.py:
- a window has at least ten steps, and three tellings of each worker;
- a step that took far longer than the others, such as the first after a start, counts for nothing;
- nothing is measured twice: a window that was taken begins anew.
"""

from dataclasses import dataclass
from itertools import pairwise
from statistics import median

STEPS = 10

_PULSES = 3


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Of a step of the window."""

    trained_s: float
    """Its wait for the batch not included."""

    sampled_s: float
    """Busy, all workers together."""

    step_s: float
    """From the end of the step before to its own."""


class Window:
    """Collects until it is taken."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Forget what was measured."""
        self._trained_s: list[float] = []
        self._ended_s: list[float] = []
        self._sampled_s: list[float] = []

    def step(self, trained_s: float, now_s: float) -> None:
        """A step took so long, and is done."""
        self._trained_s.append(trained_s)
        self._ended_s.append(now_s)

    def sampled(self, seconds: float) -> None:
        """A worker was busy for so long since it last told."""
        self._sampled_s.append(seconds)

    def take(self, *, workers: int) -> Measured | None:
        """What was measured, once the window is full; None before, and where a side did nothing."""
        steps = len(self._trained_s)
        if steps < STEPS or not workers or len(self._sampled_s) < _PULSES * workers:
            return None
        ends_s = self._ended_s
        found = Measured(
            trained_s=median(self._trained_s),
            sampled_s=sum(self._sampled_s) / steps,
            step_s=median(after - before for before, after in pairwise(ends_s)),
        )
        self.begin()
        return found if found.trained_s > 0.0 and found.sampled_s > 0.0 else None
