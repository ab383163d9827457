"""How long transfers between two ranks take, against how long they did.

The rank that enters a collective last waits for nobody in it, so the shortest time that any member
spends in a collective is the transfer alone. That needs no clocks of two hosts to agree.

Pure. Guarantees, each asserted in tests/cluster/watchdog/test_delays.py:
- a late rank makes no transfer slow;
- transfers are compared with earlier ones of the same communicator, operation and size (within a
  factor of two), so that another size of message raises nothing;
- a pair is judged by the smallest communicators that both are in;
- what is slow now does not become what is usual before `ADOPTED_STEPS` steps.
"""

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from statistics import median

from trainer.boards import CollectiveRecord, RankReading

BASELINE = 16
"""Transfers before a communicator's usual time is known."""

ADOPTED_STEPS = 400
"""After so many slow steps the new speed is the usual one."""

_PAST = 64
_OPEN = 512
_DOUBTFUL = 1.6

_Line = tuple[str, str, int]
"""Communicator, operation, and size as a power of two."""


@dataclass
class _Usual:
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_PAST))
    doubtful: deque[float] = field(default_factory=lambda: deque(maxlen=_PAST))
    middle_s: float | None = None
    unread: int = 0

    def ratio(self, seconds: float) -> float | None:
        """Of one transfer to the usual; None until that is known."""
        if self.middle_s is None or self.unread >= BASELINE:
            self.unread = 0
            self.middle_s = median(self.seconds) if len(self.seconds) >= BASELINE else None
        if self.middle_s is None:
            self.seconds.append(seconds)
            return None
        ratio = seconds / max(self.middle_s, 1e-9)
        if ratio < _DOUBTFUL:
            self.seconds.append(seconds)
            self.unread += 1
        else:
            self.doubtful.append(seconds)
        return ratio

    def adopt(self) -> None:
        """Take the doubtful for usual."""
        self.seconds, self.doubtful = self.doubtful, deque(maxlen=_PAST)
        self.middle_s = None


@dataclass(frozen=True)
class StepDelays:
    """Of one communicator, in one step."""

    ratio: float
    """Median of its transfers over what is usual."""

    excess_s: float
    """Sum of what they took longer than usual."""


class Delays:
    """Transfers of all communicators. Feed it readings, and say when steps end."""

    def __init__(self, window_steps: int) -> None:
        self._window_steps = window_steps
        self._seen: dict[tuple[int, str], int] = {}
        self._newest: dict[int, CollectiveRecord] = {}
        self._open: dict[tuple[str, int], dict[int, CollectiveRecord]] = {}
        self._usual: dict[_Line, _Usual] = {}
        self._now: dict[str, list[tuple[float, float]]] = {}
        self._windows: dict[str, deque[StepDelays]] = {}
        self._slow_steps: dict[str, int] = {}
        self.members: dict[str, tuple[int, ...]] = {}

    def add(self, readings: Mapping[int, RankReading]) -> None:
        """Take what has ended since the last call."""
        for rank, reading in readings.items():
            newest = reading.recent[-1] if reading.recent else None
            if newest is None or newest == self._newest.get(rank):
                continue
            self._newest[rank] = newest
            for done in reading.recent:
                key = (rank, done.communicator)
                members = reading.members.get(done.communicator, ())
                if done.sequence <= self._seen.get(key, 0) or len(members) < 2:
                    continue
                self._seen[key] = done.sequence
                self.members[done.communicator] = members
                self._gather(rank, done, members)

    def close_steps(self, count: int) -> None:
        """`count` steps have ended: what came since the last call are their transfers, in order."""
        for communicator, pairs in self._now.items():
            size = max(1, math.ceil(len(pairs) / count))
            for begin in range(0, len(pairs), size):
                self._close(communicator, pairs[begin : begin + size])
        self._now.clear()

    def _close(self, communicator: str, pairs: list[tuple[float, float]]) -> None:
        ratio = median(ratio for ratio, _ in pairs)
        excess_s = sum(excess for _, excess in pairs)
        window = self._windows.setdefault(communicator, deque(maxlen=self._window_steps))
        window.append(StepDelays(ratio, excess_s))
        slow = self._slow_steps.get(communicator, 0) + 1 if ratio >= _DOUBTFUL else 0
        self._slow_steps[communicator] = slow
        if slow >= ADOPTED_STEPS:
            self._adopt(communicator)

    def forget(self) -> None:
        """Begin sequences anew, as after a recovery; what is usual stays known."""
        self._seen.clear()
        self._newest.clear()
        self._open.clear()
        self._now.clear()
        self._windows.clear()

    def windows(self) -> dict[str, list[StepDelays]]:
        """The last steps of each communicator that has a full window."""
        return {
            communicator: list(window)
            for communicator, window in self._windows.items()
            if len(window) == self._window_steps
        }

    def _adopt(self, communicator: str) -> None:
        self._slow_steps[communicator] = 0
        for (name, _, _), usual in self._usual.items():
            if name == communicator and len(usual.doubtful) >= BASELINE:
                usual.adopt()

    def _gather(self, rank: int, done: CollectiveRecord, members: Iterable[int]) -> None:
        together = self._open.setdefault((done.communicator, done.sequence), {})
        together[rank] = done
        if len(together) < len(tuple(members)):
            if len(self._open) > _OPEN:
                del self._open[next(iter(self._open))]
            return
        del self._open[done.communicator, done.sequence]
        seconds = min(own.duration_s or 0.0 for own in together.values())
        size_bytes = max(own.sent_bytes for own in together.values())
        line = (done.communicator, done.kind, size_bytes.bit_length())
        usual = self._usual.setdefault(line, _Usual())
        ratio = usual.ratio(seconds)
        if ratio is not None:
            excess_s = seconds - seconds / max(ratio, 1e-9)
            self._now.setdefault(done.communicator, []).append((ratio, excess_s))


def pair_ratios(
    windows: Mapping[str, list[StepDelays]], members: Mapping[str, tuple[int, ...]]
) -> dict[tuple[int, int], float]:
    """Of each pair of ranks, both ways: the median ratio of the smallest communicators that both
    are in. A larger one may not even use the link between the two."""
    found: dict[tuple[int, int], tuple[int, list[float]]] = {}
    for communicator, window in windows.items():
        ranks = members[communicator]
        ratio = median(step.ratio for step in window)
        for pair in combinations(sorted(ranks), 2):
            size, ratios = found.get(pair, (len(ranks), []))
            if len(ranks) < size:
                found[pair] = (len(ranks), [ratio])
            elif len(ranks) == size:
                found[pair] = (size, [*ratios, ratio])
    cells: dict[tuple[int, int], float] = {}
    for (first, second), (_, ratios) in found.items():
        cells[first, second] = cells[second, first] = median(ratios)
    return cells
