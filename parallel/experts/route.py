"""Pure: which rows go to which rank, from the counts that the ranks told each other.

P ranks, H hosts of L ranks each (P = H L, rank = host L + local), V slots over all ranks, v of this
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


def _by_slot(arrived: Sequence[int], sources: int) -> tuple[Regroup, tuple[int, ...]]:
    """From chunks ordered by (source, slot) to (slot, source)."""
    slots = len(arrived) // sources
    final = Regroup(tuple(arrived), transposed(sources, slots))
    return final, tuple(_sums(final.sizes_after(), [sources] * slots))


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
    final, slot_rows = _by_slot(arrived, ranks)
    return RowPlan((hop,), final, slot_rows)


def staged_plan(
    sent: Sequence[int],
    gathered: Sequence[int],
    arrived: Sequence[int],
    slots: Sequence[int],
    *,
    local_ranks: int,
    local: int,
) -> RowPlan:
    """Inside hosts to the rank with the destination's place, then between hosts to that host.

    `gathered` is what the ranks of this host told this one: for each of them, each host and each
    slot of the rank in this one's place there. `arrived` is what came from the other hosts' ranks
    in this place: for each host, each of its ranks and each slot of this rank.
    """
    hosts = len(slots) // local_ranks
    to_ranks = _sums(sent, slots)
    first = Regroup(tuple(to_ranks), transposed(hosts, local_ranks))
    own_place = [slots[host * local_ranks + local] for host in range(hosts)]
    chunks = _sums(gathered, own_place * local_ranks)
    second = Regroup(tuple(chunks), transposed(local_ranks, hosts))
    final, slot_rows = _by_slot(arrived, len(slots))
    per_host = [len(arrived) // hosts] * hosts
    return RowPlan(
        (
            HopRows(
                before=first,
                sent=tuple(_sums(first.sizes_after(), [hosts] * local_ranks)),
                received=tuple(_sums(chunks, [hosts] * local_ranks)),
            ),
            HopRows(
                before=second,
                sent=tuple(_sums(second.sizes_after(), [local_ranks] * hosts)),
                received=tuple(_sums(arrived, per_host)),
            ),
        ),
        final,
        slot_rows,
    )
