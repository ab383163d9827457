"""Which step is copied to other hosts next, and whether they have all of it. Pure decisions.

Guarantees, each asserted in tests/cluster/recovery/test_replicas.py:
- of all time, links carry copies for no more than the share that is allowed, after the first one;
- a step is chosen so far ahead that every rank hears of it before it comes;
- after copies that failed, the next try waits longer each time, up to a minute, until one succeeds;
- a step is whole where shares of all ranks of one start were brought, those of every island, and of
  no other start.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from trainer.keeping.header import Header

NOTICE_S = 2.5
"""From a wish until every rank knows of it: reports of steps come a second late."""

_FIRST_WAIT_S = 1.0
_LONGEST_WAIT_S = 60.0


@dataclass
class Pace:
    """When the next copy is due. Times are by one monotonic clock."""

    share: float
    """Of the time, that copies may take."""

    due_s: float = 0.0
    failures: int = 0
    """In a row."""

    def copied(self, began_s: float, seconds: float) -> None:
        """All hosts have their copies; the slowest link was in use for `seconds`."""
        self.failures = 0
        self.due_s = began_s + seconds / self.share

    def failed(self, now_s: float, seconds: float) -> None:
        """Some did not come."""
        wait_s = min(_FIRST_WAIT_S * 2.0**self.failures, _LONGEST_WAIT_S)
        self.failures += 1
        self.due_s = now_s + max(wait_s, seconds / self.share)

    def next_step(self, *, step: int, now_s: float, steps_s: Iterable[float], every: int) -> int:
        """The step to keep: a multiple of `every` behind `step`, which was the last one heard of.
        `steps_s` are how long recent steps took."""
        ahead_s = max(NOTICE_S, self.due_s - now_s)
        ahead = 1 + math.ceil(ahead_s / max(1e-3, median(steps_s)))
        return -(-(step + ahead) // every) * every


def whole_generation(
    shares: Iterable[tuple[str, Header]], *, step: int, islands: int = 1
) -> int | None:
    """The start of which all ranks' shares of `step` are among `shares`, which name the island of
    each; None where there is none."""
    found: dict[tuple[str, int, int], set[tuple[str, int]]] = {}
    for island, header in shares:
        if header.step == step:
            key = (header.run, header.generation, header.ranks)
            found.setdefault(key, set()).add((island, header.rank))
    whole = [key for key, ranks in found.items() if len(ranks) == islands * key[2]]
    return max((generation for _, generation, _ in whole), default=None)
