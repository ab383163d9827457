"""Pure: which sequences of a step's batch an island trains on.

Guarantees, each asserted in tests/trainer/islands/test_share.py:
- in every step the islands of one membership take each sequence once;
- as many as their weights say, to within half a sequence where there are two, and spread over the
  batch; of equal weights every n-th;
- steps that some islands had done before a change of membership or weights are shared out as they
  were then;
- divisors are such that the weighted mean of the islands' gradients is that of all tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

_Item = TypeVar("_Item")


@lru_cache(maxsize=8)  # All steps of a run ask for the same.
def deal(sequences: int, weights: tuple[float, ...]) -> tuple[int, ...]:
    """The island that takes each of so many sequences: the one that is furthest behind its share
    (Sainte-Laguë's rule), the first of several."""
    taken = [0] * len(weights)
    owners = []
    for _ in range(sequences):
        owner = min(range(len(weights)), key=lambda i: (2 * taken[i] + 1) / weights[i])
        taken[owner] += 1
        owners.append(owner)
    return tuple(owners)


def dealt(sequences: int, weights: tuple[float, ...]) -> tuple[int, ...]:
    """How many of so many sequences each island takes."""
    owners = deal(sequences, weights)
    return tuple(owners.count(island) for island in range(len(weights)))


def enough_for_all(weights: Sequence[float]) -> int:
    """Sequences of which no island is left without one."""
    least = min(weights)
    # Before its first, it lets each other one take those whose turn is not later.
    return sum(math.floor((weight / least - 1) / 2) + 1 for weight in weights)


@dataclass(frozen=True)
class Part:
    """What one island takes, of as many as there are weights."""

    index: int = 0
    weights: tuple[float, ...] = (1.0,)

    def of(self, batch: Sequence[_Item]) -> Sequence[_Item]:
        """What of a step's batch the island takes."""
        owners = deal(len(batch), self.weights)
        return [item for item, owner in zip(batch, owners, strict=True) if owner == self.index]

    def divisor(self, targets: int) -> float:
        """What the island divides its losses by, of a step with so many target tokens in all."""
        return max(1, targets) / (sum(self.weights) / self.weights[self.index])


@dataclass(frozen=True)
class BatchShare:
    """One island's part, and the one it had up to the step `until`."""

    part: Part = Part()
    until: int = 0
    before: Part = Part()

    def at(self, step: int) -> Part:
        """The part in `step`."""
        return self.before if step <= self.until else self.part
