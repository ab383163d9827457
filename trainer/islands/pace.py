"""Pure: from what islands tell of their steps, whether other shares of the batch would be faster.

Guarantees, each asserted in tests/trainer/islands/test_pace.py:
- shares that are advised make the slowest island's step at least `WORTH_IT` times as fast, and
  leave none without a sequence;
- one slow step advises nothing, nor do the first ones;
- what is advised is advised once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from trainer.islands.share import dealt

WINDOW_STEPS = 20
WORTH_IT = 1.1
_WARM_UP_STEPS = 3
_DIGITS = 1
"""Of a share, after the point: more is noise."""


@dataclass(frozen=True, kw_only=True)
class Advice:
    """Shares that would be faster."""

    shares: tuple[float, ...]
    step_s: tuple[float, ...]
    """What a step takes each island now, without waiting for others."""

    faster: float
    """Times that steps would be as fast."""


class Pace:
    """Of islands that share out so many `sequences` a step by `weights`."""

    def __init__(self, weights: tuple[float, ...], sequences: int) -> None:
        self._weights = weights
        self._sequences = sequences
        self._heard_s: list[tuple[float, ...]] = []
        self._steps = 0
        self._advised = False

    def hear(self, busy_s: Sequence[float]) -> Advice | None:
        """What a step took each island, without waiting for others; advice where there is any."""
        self._steps += 1
        if self._advised or self._steps <= _WARM_UP_STEPS:
            return None
        self._heard_s.append(tuple(busy_s))
        if len(self._heard_s) < WINDOW_STEPS:
            return None
        # The median: a checkpoint now and then says nothing of an island's speed.
        step_s = tuple(median(island) for island in zip(*self._heard_s, strict=True))
        self._heard_s = []
        advice = advise(step_s, self._weights, self._sequences)
        self._advised = advice is not None
        return advice


def advise(step_s: Sequence[float], weights: tuple[float, ...], sequences: int) -> Advice | None:
    """Shares by which islands that took so long by `weights` take equally long."""
    had = dealt(sequences, weights)
    if min(step_s) <= 0:
        return None
    speeds = [count / seconds for count, seconds in zip(had, step_s, strict=True)]
    shares = tuple(round(speed / min(speeds), _DIGITS) for speed in speeds)
    would_have = dealt(sequences, shares)
    then_s = max(count / speed for count, speed in zip(would_have, speeds, strict=True))
    faster = max(step_s) / then_s
    if faster < WORTH_IT or not all(would_have):
        return None
    return Advice(shares=shares, step_s=tuple(step_s), faster=faster)
