"""Pure: from which snapshot, or from which checkpoint on disk, a run goes on.

Guarantees, each asserted in tests/trainer/keeping/test_newest.py:
- a step counts only if a whole share of every rank of one and the same start is in reach, on
  whichever hosts;
- damaged, torn and missing shares lead to the step before, and from the last one to the disk;
- shares of another run, or of starts that the run turned its back on, are not looked at;
- a step of an earlier start counts only where later starts did not go back behind it;
- a snapshot older than the newest checkpoint on disk is tried after it.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class HeldShare:
    """A share that some rank can read."""

    holder: int
    """The rank that reads it."""

    host: str
    """Of the holder."""

    path: str
    generation: int
    step: int
    rank: int
    """Whose share it is, among `ranks` of the start that wrote it."""

    ranks: int


@dataclass(frozen=True)
class CommonStep:
    """A snapshot of which every share is in reach."""

    generation: int
    step: int
    shares: tuple[tuple[HeldShare, ...], ...]
    """By rank: the copies of its share."""


@dataclass(frozen=True)
class Candidate:
    """Where to go on from: `number` counts the snapshots or the checkpoints."""

    kind: Literal["memory", "disk"]
    number: int


def common_steps(shares: Iterable[HeldShare]) -> list[CommonStep]:
    """All steps that can be restored from `shares`, the one to prefer first."""
    sets: dict[tuple[int, int, int], dict[int, list[HeldShare]]] = defaultdict(dict)
    for share in shares:
        held = sets[share.generation, share.step, share.ranks]
        held.setdefault(share.rank, []).append(share)
    found = [
        CommonStep(generation, step, tuple(tuple(held[rank]) for rank in range(ranks)))
        for (generation, step, ranks), held in sets.items()
        if all(rank in held for rank in range(ranks))
    ]
    found.sort(key=lambda common: (common.generation, common.step), reverse=True)
    return _without_abandoned(found)


def _without_abandoned(newest_first: list[CommonStep]) -> list[CommonStep]:
    """Less what a later start went back behind: its own steps are earlier."""
    kept: list[CommonStep] = []
    for common in newest_first:
        if not kept or common.step <= kept[-1].step:
            kept.append(common)
    return kept


def in_order(memory_steps: Sequence[int], disk_steps: Sequence[int]) -> list[Candidate]:
    """What to try, one after the other: by step, newest first; of the same step, memory first.

    Both lists are newest first, and keep their order.
    """
    candidates = [(-step, 0, number) for number, step in enumerate(memory_steps)]
    candidates += [(-step, 1, number) for number, step in enumerate(disk_steps)]
    return [
        Candidate("disk" if on_disk else "memory", number)
        for _, on_disk, number in sorted(candidates)
    ]
