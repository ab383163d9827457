"""What each rank reported of its ended steps, lined up by step.

Pure. Guarantees, each asserted in tests/cluster/watchdog/test_steps.py:
- a step is passed on once, when every rank of the newest generation has ended it, in order;
- the first steps of a generation are left out;
- a step that some rank no longer remembers is left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from trainer.boards import RankReading

_MOST = 256
"""No rank remembers more steps."""


@dataclass(frozen=True, kw_only=True)
class RankStep:
    """One step of one rank, seconds."""

    duration_s: float
    """From the end of the step before."""

    compute_s: float
    waited_s: float
    data_s: float | None
    work: float | None

    @property
    def busy_s(self) -> float:
        """Not waiting for collectives, nor for the batch."""
        return max(0.0, self.duration_s - self.waited_s - (self.data_s or 0.0))


class Steps:
    """Lines up steps. Feed it the readings of each observation."""

    def __init__(self, warm_up_steps: int) -> None:
        self._warm_up_steps = warm_up_steps
        self._generation = -1
        self._next = 0

    def take(self, readings: Mapping[int, RankReading]) -> list[tuple[int, dict[int, RankStep]]]:
        """Steps that all ranks have ended since the last call, oldest first."""
        if not readings:
            return []
        generation = max(reading.generation for reading in readings.values())
        if generation != self._generation:
            self._generation = generation
            first = min(reading.ended_step for reading in readings.values())
            self._next = first + 1 + self._warm_up_steps
        last = min(reading.ended_step for reading in readings.values())
        if last < self._next:
            return []
        taken = []
        for step in range(max(self._next, last - _MOST), last + 1):
            ranks = {rank: _step(reading, step) for rank, reading in readings.items()}
            known = {rank: own for rank, own in ranks.items() if own is not None}
            if len(known) == len(readings):
                taken.append((step, known))
        self._next = last + 1
        return taken


def _step(reading: RankReading, step: int) -> RankStep | None:
    """None where this step, or the end of the one before, is no longer remembered."""
    back = next((n for n, known in enumerate(reversed(reading.steps), 1) if known == step), 0)
    if back == 0 or back >= len(reading.step_ended_s):
        return None
    return RankStep(
        duration_s=reading.step_ended_s[-back] - reading.step_ended_s[-back - 1],
        compute_s=_entry(reading.compute_s, back) or 0.0,
        waited_s=_entry(reading.waited_s, back) or 0.0,
        data_s=_entry(reading.data_s, back),
        work=_entry(reading.work, back) or None,
    )


def _entry(values: tuple[float, ...], back: int) -> float | None:
    return values[-back] if back <= len(values) else None
