"""Pure: which sequences of a step's batch an island trains on.

Guarantees, each asserted in tests/trainer/islands/test_share.py:
- in every step the islands of one membership take each sequence once;
- steps that some islands had done before a change of membership are shared out as they were then;
- divisors are such that the weighted mean of the islands' gradients is that of all tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Part:
    """Every `count`-th sequence, beginning with number `index`."""

    index: int = 0
    count: int = 1

    def of(self, batch: Sequence[_Item]) -> Sequence[_Item]:
        """What of a step's batch the island takes."""
        return batch[self.index :: self.count]

    def divisor(self, targets: int) -> float:
        """What the island divides its losses by, of a step with so many target tokens in all."""
        return max(1, targets) / self.count


@dataclass(frozen=True)
class BatchShare:
    """One island's part, and the one it had up to the step `until`."""

    part: Part = Part()
    until: int = 0
    before: Part = Part()

    def at(self, step: int) -> Part:
        """The part in `step`."""
        return self.before if step <= self.until else self.part
