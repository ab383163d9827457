"""Which prompts may start, and which are trained next, so that none is ever too stale. Pure.

Step k trains version k into version k + 1. An answer whose oldest token was drawn by version s and
that is trained in step k has staleness k - s. With B prompts per step and a bound of eta:

    capacity = min over j of (j + 1) B - (prompts under way that must be trained by step k + j)

For workers that sample from the newest version this is AReaL's (eta + version + 1) B - (accepted +
running) (arXiv 2505.24298, section 5.1), since k B prompts are trained already. Taking every j,
not only the last, and letting steps wait for what is due, keeps the bound also where answers finish
in another order than they began and where workers lag behind the trainer.

Guarantees, each asserted in tests/trainer/rl/test_staleness.py:
- no prompt is trained with a staleness above the bound, whatever finishes when and whichever
  versions workers have;
- nothing is thrown away to keep it, and there is no deadlock: once what has begun is finished, a
  step can be taken or a prompt can start;
- the oldest are trained first, in an order that does not depend on when they finished;
- a bound of zero is the synchronous run: a step trains what began at its own version, in the order
  of the prompts, and nothing starts while a step is under way.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class UnderWay(NamedTuple):
    """A prompt that has begun and is in no step yet."""

    number: int
    """Its place in the order of all prompts of the run."""

    version: int
    """The oldest that drew one of its tokens; where it has none, the one that will."""

    finished: bool


@dataclass(frozen=True, kw_only=True)
class StalenessBound:
    """The rule of one run."""

    max_staleness: int
    """Most updates between the oldest token of an answer and the step that trains it (eta)."""

    prompts_per_step: int
    """B."""

    max_running: int
    """Most prompts that are being answered at a time, over all workers."""

    def __post_init__(self) -> None:
        if self.max_staleness < 0:
            raise ValueError(
                f"max_staleness={self.max_staleness} must not be negative; 0 is synchronous"
            )
        if self.prompts_per_step < 1 or self.max_running < 1:
            raise ValueError(
                f"prompts_per_step={self.prompts_per_step} and max_running={self.max_running} must "
                "be at least 1"
            )

    def capacity(
        self, *, step: int, version: int, under_way: Sequence[UnderWay], running: int
    ) -> int:
        """How many prompts a worker that has weights `version` may start.

        `step` is the next to be taken: while step k is being trained it is k + 1. `running` are
        those under way that a worker answers now; they include prompts that go on after a loss.
        None for weights newer than `step`: training went back, and they are of steps undone.
        """
        lag = step - version
        if not 0 <= lag <= self.max_staleness:
            return 0
        rooms = self._rooms(step, under_way, taken=0)
        return max(0, min(self.max_running - running, *rooms[self.max_staleness - lag :]))

    def choose(
        self, *, step: int, under_way: Sequence[UnderWay], exhausted: bool = False
    ) -> tuple[int, ...]:
        """Numbers of the prompts that step `step` trains, oldest first; none where it must wait.

        With `exhausted`, no prompt will start any more, and the last step may be smaller.
        """
        size = self.prompts_per_step
        if exhausted:
            size = min(size, len(under_way))
        oldest = sorted((one for one in under_way if one.finished), key=_age)[:size]
        if len(oldest) < size or not oldest:
            return ()
        chosen = {one.number for one in oldest}
        left = [one for one in under_way if one.number not in chosen]
        # Oldest first leaves the fewest of each age: if this leaves too many, any choice does.
        if min(self._rooms(step, left, taken=1)) < 0:
            return ()
        return tuple(one.number for one in oldest)

    def _rooms(self, step: int, under_way: Iterable[UnderWay], *, taken: int) -> list[int]:
        """For each j, how many more prompts may have to be trained by step + j, of whose steps
        `taken` are filled already."""
        due = Counter(max(0, one.version - step + self.max_staleness) for one in under_way)
        rooms, total = [], 0
        for j in range(self.max_staleness + 1):
            total += due[j]
            rooms.append((j + 1 - taken) * self.prompts_per_step - total)
        return rooms


def _age(one: UnderWay) -> tuple[int, int]:
    return one.version, one.number


@dataclass(frozen=True, kw_only=True)
class StalenessDistribution:
    """Of the prompts of one step, or of many."""

    counts: tuple[int, ...]
    """How many had staleness 0, 1, 2, …."""

    @property
    def prompts(self) -> int:
        """How many there were."""
        return sum(self.counts)

    @property
    def mean(self) -> float:
        """0 where there were none."""
        return sum(s * n for s, n in enumerate(self.counts)) / max(1, self.prompts)

    @property
    def max(self) -> int:
        """0 where there were none."""
        return max(0, len(self.counts) - 1)

    def quantile(self, share: float) -> int:
        """The least staleness that at least this share of the prompts do not exceed."""
        seen = 0
        for staleness, count in enumerate(self.counts):
            seen += count
            if seen >= share * self.prompts:
                return staleness
        return self.max


def distribution(step: int, versions: Sequence[int]) -> StalenessDistribution:
    """Of the prompts that step `step` trains; `versions` are the oldest of each."""
    counts = Counter(step - version for version in versions)
    if min(counts, default=0) < 0:
        raise ValueError(
            f"step {step} trains an answer of version {max(versions)}, which comes later; count "
            "steps from the first version"
        )
    return StalenessDistribution(
        counts=tuple(counts[s] for s in range(max(counts, default=-1) + 1))
    )
