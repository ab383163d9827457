"""Many faults in a row, drawn from a seed. Pure decisions.

Guarantees, each asserted in tests/cluster/drills/test_series.py:
- the same seed draws the same faults;
- the first fault comes before the first step and the last one in the last step;
- every kind, every moment and two faults at once are among any ten faults in a row;
- a fault during a recovery follows one that has to be recovered from.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["kill", "stop", "slow"]
Moment = Literal["before-steps", "training", "checkpoint", "recovery", "last-step"]

_MIXED: tuple[tuple[Moment, tuple[Kind, ...]], ...] = (
    ("training", ("kill",)),
    ("recovery", ("kill",)),
    ("training", ("stop",)),
    ("checkpoint", ("kill",)),
    ("training", ("slow",)),
    ("training", ("kill", "kill")),
    ("training", ("kill", "stop")),
    ("recovery", ("stop",)),
)
"""What a series goes through again and again, in another order each time, with the pairs of a fault
and one during its recovery kept together."""

_STEPS_BETWEEN = (1, 6)


@dataclass(frozen=True, kw_only=True)
class PlannedFault:
    """One fault, before it is known which processes it will hit."""

    moment: Moment
    kinds: tuple[Kind, ...]
    """What is done, each to another rank, at the same moment."""

    ranks: tuple[int, ...]
    """To whom, as long as `kinds`."""

    after_steps: int
    """Steps that the run takes undisturbed before it."""

    delay_s: float
    """Waited once the moment has come, so that faults hit any line of the program."""

    @property
    def ends_ranks(self) -> bool:
        """Whether the run has to recover from it."""
        return any(kind != "slow" for kind in self.kinds)


def draw_faults(count: int, *, ranks: int, seed: int) -> tuple[PlannedFault, ...]:
    """`count` faults for a run of `ranks` ranks, two at least. Raises ValueError for fewer."""
    if ranks < 2 or count < 2:
        raise ValueError(f"a series needs two ranks and two faults, got {ranks} and {count}")
    chance = random.Random(seed)
    mixed = _mixed(chance)
    found = [_planned("before-steps", ("kill",), ranks, chance)]
    found += [_planned(*next(mixed), ranks, chance) for _ in range(count - 2)]
    return (*found, _planned("last-step", ("kill",), ranks, chance))


def same_faults(count: int, kind: Kind, *, ranks: int, seed: int) -> tuple[PlannedFault, ...]:
    """`count` faults of one kind while training, one rank at a time."""
    chance = random.Random(seed)
    return tuple(_planned("training", (kind,), ranks, chance) for _ in range(count))


def _mixed(chance: random.Random) -> Iterator[tuple[Moment, tuple[Kind, ...]]]:
    while True:
        groups = [list(_MIXED[0:2]), *([one] for one in _MIXED[2:6]), list(_MIXED[6:8])]
        chance.shuffle(groups)
        for group in groups:
            yield from group


def _planned(
    moment: Moment, kinds: tuple[Kind, ...], ranks: int, chance: random.Random
) -> PlannedFault:
    return PlannedFault(
        moment=moment,
        kinds=kinds,
        ranks=tuple(chance.sample(range(ranks), len(kinds))),
        after_steps=chance.randint(*_STEPS_BETWEEN),
        delay_s=0.0 if moment == "last-step" else chance.uniform(0.0, 0.1),
    )
