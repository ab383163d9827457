"""Gather and sum along a ring whose order is chosen, from neighbour to neighbour.

The collectives of gloo and NCCL pass ranks as the group counts them, over whatever links lie
between. Here each rank sends to the next one of `order` alone (places of the group), so a link that
no two neighbours share carries nothing. P ranks, C entries of one of P parts, B bytes of a message.

Guarantees, each asserted in tests/comms/compression/test_ring.py:
- gathered rows lie by the places of the group, whatever the order: what is made of them is bitwise
  the same;
- all ranks get the same sums, bitwise; another order gives them within the rounding of their dtype;
- a rank sends to its next neighbour alone, as many bytes as a ring collective does.
"""

from collections.abc import Callable, Generator, Sequence
from itertools import pairwise
from typing import TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

Hops: TypeAlias = "Generator[dist.Work, None, None]"
"""Yields what is under way, to be resumed once it has completed."""

Order = tuple[int, ...]

RingOrder = Callable[[Sequence[int]], Sequence[int]]
"""From world ranks of a group to the order of its places."""


def is_natural(order: Sequence[int]) -> bool:
    """Whether a ring passes the places as they are counted, wherever it begins."""
    places = len(order)
    return all((b - a) % places == 1 % places for a, b in pairwise(order))


def ring_of(group: dist.ProcessGroup, order: RingOrder) -> Order:
    """The order of the places of `group`; empty where they pass as they are counted. Raises
    ValueError where it does not name every place once."""
    places = tuple(order(dist.get_process_group_ranks(group)))
    if sorted(places) != list(range(group.size())):
        raise ValueError(f"The order {places} must name each of the {group.size()} places once.")
    return () if is_natural(places) else places


def gather_around(rows_PB: Tensor, group: dist.ProcessGroup, order: Order) -> Hops:
    """Fill all rows but this rank's own, which is there already."""
    ring = _Ring(group, order)
    for hop in range(ring.size - 1):
        leaving, arriving = order[ring.index - hop], order[ring.index - hop - 1]
        yield from ring.pass_on(rows_PB[leaving], rows_PB[arriving])


def sum_around(values: Tensor, group: dist.ProcessGroup, order: Order) -> Hops:
    """Sum a flat tensor over the ranks, in place: each part is added up once around the ring, and
    then goes around once more."""
    ring = _Ring(group, order)
    size, at = ring.size, ring.index
    part = -(-values.numel() // size)
    parts_PC = values.new_zeros(size, part)
    parts_PC.view(-1)[: values.numel()] = values
    arriving = values.new_empty(part)
    for hop in range(size - 1):
        yield from ring.pass_on(parts_PC[(at - hop) % size], arriving)
        parts_PC[(at - hop - 1) % size] += arriving
    for hop in range(size - 1):
        yield from ring.pass_on(parts_PC[(at - hop + 1) % size], parts_PC[(at - hop) % size])
    values.copy_(parts_PC.view(-1)[: values.numel()])


class _Ring:
    """This rank's place, and its neighbours."""

    def __init__(self, group: dist.ProcessGroup, order: Order) -> None:
        self.size = group.size()
        self.index = order.index(group.rank())
        self._group = group
        self._next = order[(self.index + 1) % self.size]
        self._before = order[self.index - 1]

    def pass_on(self, leaving: Tensor, arriving: Tensor) -> Hops:
        """Send to the next place, and receive from the one before."""
        # As one batch: NCCL would let every rank wait with its send for the receive of the next.
        yield from dist.batch_isend_irecv(
            [
                dist.P2POp(dist.isend, leaving, group=self._group, group_peer=self._next),
                dist.P2POp(dist.irecv, arriving, group=self._group, group_peer=self._before),
            ]
        )


def started(work: dist.Work | None) -> dist.Work:
    """What a collective that was asked for asynchronously returns."""
    assert work is not None
    return work


def gathered_rows(
    code: Tensor, group: dist.ProcessGroup, order: Order = ()
) -> Generator[dist.Work, None, Tensor]:
    """All ranks' codes, of one size, as rows; around the ring of `order` where there is one."""
    rows_PB = torch.empty(group.size(), code.numel(), dtype=torch.uint8, device=code.device)
    if order:
        rows_PB[group.rank()] = code
        yield from gather_around(rows_PB, group, order)
    else:
        yield started(dist.all_gather(list(rows_PB), code, group=group, async_op=True))
    return rows_PB


def summed(values: Tensor, group: dist.ProcessGroup, order: Order = ()) -> Hops:
    """Sum over the ranks, in place; around the ring of `order` where there is one."""
    if order:
        yield from sum_around(values, group, order)
    else:
        yield started(dist.all_reduce(values, group=group, async_op=True))
