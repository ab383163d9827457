"""Pure: which rows go to which rank, from the counts that the ranks told each other.

P ranks, H hosts of L ranks each (P = H L), V slots over all ranks, v of this
rank. A slot is an expert, or a copy of one. A chunk is a run of rows with one origin and one
destination.

Guarantees, each asserted in tests/parallel/experts/test_route.py:
- every row arrives once, whatever the counts;
- rows arrive sorted by slot, then by the rank they come from, then as they were there: in one stage
  and in two alike, so both give bitwise the same results.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Regroup:
    """Chunks of rows in another order."""

    sizes: tuple[int, ...]
    """Rows of each chunk, as they come."""

    order: tuple[int, ...]
    """Chunk `order[i]` becomes the i-th."""

    def apply(self, rows: Tensor) -> Tensor:
        """Rows [R, ...] in the new order."""
        return _reordered(rows, self.sizes, self.order)

    def inverse(self, rows: Tensor) -> Tensor:
        """Rows in the order that `apply` was given."""
        back = sorted(range(len(self.order)), key=self.order.__getitem__)
        return _reordered(rows, [self.sizes[i] for i in self.order], back)

    def sizes_after(self) -> list[int]:
        """Rows of each chunk in the new order."""
        return [self.sizes[i] for i in self.order]


def _reordered(rows: Tensor, sizes: Sequence[int], order: Sequence[int]) -> Tensor:
    if tuple(order) == tuple(range(len(order))):
        return rows
    chunks = rows.split(list(sizes))
    return torch.cat([chunks[i] for i in order])


def transposed(rows: int, columns: int, inner: int = 1) -> tuple[int, ...]:
    """Order that turns chunks [rows, columns, inner] into [columns, rows, inner]."""
    return tuple(
        (r * columns + c) * inner + i
        for c in range(columns)
        for r in range(rows)
        for i in range(inner)
    )


@dataclass(frozen=True)
class HopRows:
    """One exchange: rows sent to and received from each peer, after putting them in its order."""

    before: Regroup
    sent: tuple[int, ...]
    received: tuple[int, ...]


@dataclass(frozen=True)
class RowPlan:
    """All exchanges of one dispatch, in turn, and the last regrouping, by slot."""

    hops: tuple[HopRows, ...]
    final: Regroup
    slot_rows: tuple[int, ...]
    """Rows that arrive for each slot of this rank."""

    first: Regroup = Regroup((), ())
    """What comes before all of it, where rows are not sorted by slots of all ranks yet."""


def _sums(counts: Sequence[int], sizes: Sequence[int]) -> list[int]:
    """Sums of consecutive runs of the given lengths."""
    totals, start = [], 0
    for size in sizes:
        totals.append(sum(counts[start : start + size]))
        start += size
    return totals


def _by_slot(arrived: Sequence[int], order: Sequence[int]) -> tuple[Regroup, tuple[int, ...]]:
    """From chunks ordered by (source, slot), sources as `order` names them, to (slot, source)."""
    sources, slots = len(order), len(arrived) // len(order)
    places = sorted(range(sources), key=order.__getitem__)
    by_slot = tuple(place * slots + slot for slot in range(slots) for place in places)
    final = Regroup(tuple(arrived), by_slot)
    return final, tuple(_sums(final.sizes_after(), [sources] * slots))


@dataclass(frozen=True)
class Hosts:
    """Which ranks are together in the first of two stages: those of a host, or of several hosts.

    Groups count their members as ranks do, so a place's ranks need not come in the same order of
    hosts as another's. Raises ValueError where hosts do not share all ranks out evenly.
    """

    ranks: tuple[tuple[int, ...], ...]
    """Of each host, ascending; a rank's place is its index."""

    def __post_init__(self) -> None:
        everybody = sorted(rank for host in self.ranks for rank in host)
        even = len({len(host) for host in self.ranks}) == 1
        ascending = all(list(host) == sorted(host) for host in self.ranks)
        if not even or not ascending or everybody != list(range(len(everybody))):
            raise ValueError(
                f"{self.ranks} must be equal groups of ascending ranks, each of which is in one"
            )

    @classmethod
    def neighbours(cls, ranks: int, *, local_ranks: int) -> "Hosts":
        """Neighbours in rank share hosts."""
        starts = range(0, ranks, local_ranks)
        return cls(tuple(tuple(range(at, at + local_ranks)) for at in starts))

    @property
    def count(self) -> int:
        """How many hosts there are."""
        return len(self.ranks)

    @property
    def local_ranks(self) -> int:
        """Ranks of each."""
        return len(self.ranks[0])

    def place(self, local: int) -> list[int]:
        """The ranks with this place on their hosts, ascending."""
        return sorted(host[local] for host in self.ranks)

    @property
    def by_place(self) -> tuple[int, ...]:
        """All ranks, place by place."""
        return tuple(rank for local in range(self.local_ranks) for rank in self.place(local))

    def sources(self, local: int) -> list[int]:
        """All ranks in the order in which rows of theirs come to a rank with this place: host by
        host, as its own place's ranks come."""
        host_of = {rank: host for host in self.ranks for rank in host}
        return [rank for twin in self.place(local) for rank in host_of[twin]]


def direct_plan(sent: Sequence[int], arrived: Sequence[int], slots: Sequence[int]) -> RowPlan:
    """Everybody to everybody at once.

    `sent` [V] are this rank's rows per slot, `arrived` [P v] what each rank told this one, `slots`
    [P] the slots of each rank.
    """
    ranks = len(slots)
    to_ranks = _sums(sent, slots)
    hop = HopRows(
        before=Regroup(tuple(to_ranks), tuple(range(ranks))),
        sent=tuple(to_ranks),
        received=tuple(_sums(arrived, [len(arrived) // ranks] * ranks)),
    )
    final, slot_rows = _by_slot(arrived, range(ranks))
    return RowPlan((hop,), final, slot_rows)


def staged_plan(
    sent: Sequence[int],
    gathered: Sequence[int],
    arrived: Sequence[int],
    slots: Sequence[int],
    *,
    hosts: Hosts,
    local: int,
) -> RowPlan:
    """Inside hosts to the rank with the destination's place, then between hosts to that host.

    `gathered` is what the ranks of this host told this one: for each of them, each host and each
    slot of the rank in this one's place there. `arrived` is what came from the other hosts' ranks
    in this place: for each host, each of its ranks and each slot of this rank.
    """
    count, local_ranks = hosts.count, hosts.local_ranks
    to_ranks = _sums(sent, slots)
    first = Regroup(tuple(to_ranks), hosts.by_place)
    own_place = [slots[rank] for rank in hosts.place(local)]
    chunks = _sums(gathered, own_place * local_ranks)
    second = Regroup(tuple(chunks), transposed(local_ranks, count))
    final, slot_rows = _by_slot(arrived, hosts.sources(local))
    per_host = [len(arrived) // count] * count
    return RowPlan(
        (
            HopRows(
                before=first,
                sent=tuple(_sums(first.sizes_after(), [count] * local_ranks)),
                received=tuple(_sums(chunks, [count] * local_ranks)),
            ),
            HopRows(
                before=second,
                sent=tuple(_sums(second.sizes_after(), [local_ranks] * count)),
                received=tuple(_sums(arrived, per_host)),
            ),
        ),
        final,
        slot_rows,
    )
