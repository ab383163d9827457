"""Who waits for whom: the collectives that are open at one moment.

Pure. Guarantees, each asserted in tests/cluster/watchdog/test_waits.py:
- a rank waits for those members of its communicator whose last sequence is behind its own;
- a rank that waits for a collective which all members have entered is in a transfer;
- a collective that a rank does not wait for yet holds it up in no way;
- following the waits from any rank ends at those that wait for nobody, unless they form a ring.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from cluster.watchdog.evidence import ClusterEvidence
from trainer.boards import CollectiveRecord, RankReading

Mode = Literal["own", "waiting", "transfer"]


@dataclass(frozen=True)
class Wait:
    """One pending collective of one rank."""

    rank: int
    members: tuple[int, ...]
    collective: CollectiveRecord
    missing: tuple[int, ...]
    """Members that have not entered it."""

    @property
    def key(self) -> tuple[str, int]:
        """Equal on all ranks that are in the same collective."""
        return self.collective.communicator, self.collective.sequence


def current(evidence: ClusterEvidence) -> dict[int, RankReading]:
    """Readings of the ranks that are in the newest generation: those that can meet."""
    readings = {
        rank: seen.reading for rank, seen in evidence.ranks.items() if seen.reading is not None
    }
    newest = max((reading.generation for reading in readings.values()), default=0)
    return {rank: own for rank, own in readings.items() if own.generation == newest}


def open_waits(readings: Mapping[int, RankReading]) -> list[Wait]:
    """The oldest pending collective of every communicator, of every rank."""
    waits: list[Wait] = []
    for rank, reading in readings.items():
        oldest: dict[str, CollectiveRecord] = {}
        for pending in reading.pending:
            known = oldest.get(pending.communicator)
            if known is None or pending.sequence < known.sequence:
                oldest[pending.communicator] = pending
        waits += [_wait(rank, reading, pending, readings) for pending in oldest.values()]
    return waits


def _wait(
    rank: int, reading: RankReading, pending: CollectiveRecord, readings: Mapping[int, RankReading]
) -> Wait:
    communicator = pending.communicator
    members = reading.members.get(communicator) or tuple(
        sorted(other for other, own in readings.items() if communicator in own.last_sequence)
    )
    missing = tuple(
        member
        for member in members
        if member != rank
        and (
            member not in readings
            or readings[member].last_sequence.get(communicator, 0) < pending.sequence
        )
    )
    return Wait(rank, members, pending, missing)


def modes(ranks: Iterable[int], waits: Iterable[Wait]) -> dict[int, Mode]:
    """What each rank is held up by: others, the network, or nobody.

    A collective that the rank does not wait for yet holds up nobody.
    """
    found: dict[int, Mode] = dict.fromkeys(ranks, "own")
    for wait in waits:
        if wait.collective.awaited_s is None:
            continue
        if wait.missing:
            found[wait.rank] = "waiting"
        elif found[wait.rank] == "own":
            found[wait.rank] = "transfer"
    return found


def rings(waits: Iterable[Wait]) -> list[tuple[int, ...]]:
    """Sets of ranks that wait for one another and for nobody else."""
    edges: dict[int, set[int]] = {}
    for wait in waits:
        if wait.missing and wait.collective.awaited_s is not None:
            edges.setdefault(wait.rank, set()).update(wait.missing)
    found: set[tuple[int, ...]] = set()
    for rank in edges:
        reached = _reached(rank, edges)
        if rank in reached and all(other in edges for other in reached):
            found.add(tuple(sorted(reached)))
    # A set that contains a smaller one waits for that.
    return sorted(ring for ring in found if not any(set(o) < set(ring) for o in found))


def _reached(rank: int, edges: Mapping[int, set[int]]) -> set[int]:
    reached: set[int] = set()
    frontier = list(edges.get(rank, ()))
    while frontier:
        other = frontier.pop()
        if other not in reached:
            reached.add(other)
            frontier.extend(edges.get(other, ()))
    return reached
