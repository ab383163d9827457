"""How long a process wanted a core and got none.

On a machine with too much to do a healthy rank makes no progress for seconds. The system counts how
long each thread waited for a core, but only once it got one; so a thread that wants a core and has
not run since it was last looked at counts as waiting meanwhile.

Pure. Guarantees, each asserted in tests/cluster/watchdog/test_starved.py:
- a process that sleeps, is stopped, or runs undisturbed is not starved;
- a wait counts once, while it lasts or when it is over, and never for longer than the time between
  two looks;
- of several threads the one that waited longest counts;
- starvation between two looks is spread evenly over the steps that ended meanwhile.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class ThreadTimes:
    """Of one thread since it began."""

    wants_core: bool
    """Whether it runs, or would if it had a core."""

    ran_s: float
    waited_s: float
    """For a core, in waits that are over."""


class Starvation:
    """Of one process. Feed it what is seen of its threads."""

    def __init__(self) -> None:
        self._at_s = 0.0
        self._threads: Mapping[int, ThreadTimes] = {}
        self._waiting_s: dict[int, float] = {}
        self.total_s = 0.0

    def add(self, now_s: float, threads: Mapping[int, ThreadTimes]) -> float:
        """Take one look, by number of the thread; seconds starved since the first."""
        elapsed_s = max(0.0, now_s - self._at_s)
        waited_s = [
            self._waited_s(number, self._threads[number], own, elapsed_s)
            for number, own in threads.items()
            if number in self._threads
        ]
        self._at_s, self._threads = now_s, threads
        self.total_s += min(max(waited_s, default=0.0), elapsed_s)
        return self.total_s

    def _waited_s(
        self, number: int, before: ThreadTimes, own: ThreadTimes, elapsed_s: float
    ) -> float:
        told_s = self._waiting_s.pop(number, 0.0)
        if before.wants_core and own.wants_core and own.ran_s == before.ran_s:
            self._waiting_s[number] = told_s + elapsed_s
            return elapsed_s
        return max(0.0, own.waited_s - before.waited_s - told_s)


class StarvedSteps:
    """Starvation of all ranks, spread over their steps. Feed it each time that steps end."""

    def __init__(self, window_steps: int) -> None:
        self._before_s: dict[int, float] = {}
        self._window: deque[float] = deque(maxlen=window_steps)

    def add(self, total_s: Mapping[int, float], steps: int) -> None:
        """`steps` steps have ended since the last call. `total_s`, by rank, only grows, but for
        processes that are new."""
        each_s = [
            max(0.0, now_s - self._before_s.get(rank, now_s)) / steps
            for rank, now_s in total_s.items()
        ]
        self._before_s = dict(total_s)
        self._window.extend([median(each_s)] * steps)

    @property
    def usual_s(self) -> float:
        """Per step, of the middle rank over the window."""
        return sum(self._window) / len(self._window) if self._window else 0.0
