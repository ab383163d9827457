"""Copies of hot experts on other ranks, for one forward and backward.

v slots of this rank, w copies that it has on loan, V slots and copies of all ranks.

A copy has no state of its own: its weights come from the owner in forward, its gradient goes back
there in backward and is added, so there is one optimizer state per expert whatever is lent.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from parallel.experts.placement import Placement
from parallel.experts.route import Regroup
from parallel.experts.transport import Lane


class Loans:
    """Who works on which rows where experts are lent.

    On every rank come its own slots and then the copies it has, both ascending. The rows that a
    rank has for a lent expert go to its holders in equal consecutive parts, the owner's first.
    """

    def __init__(self, placement: Placement, rank: int) -> None:
        self._placement = placement
        ranks, each = range(placement.ranks), placement.per_rank
        borrowed = [[slot for slot, to in placement.loans if to == r] for r in ranks]
        self.slots = tuple(each + len(slots) for slots in borrowed)
        """Slots and copies of each rank."""
        held = [
            (slot, r) for r in ranks for slot in (*range(r * each, (r + 1) * each), *borrowed[r])
        ]
        self._slot_V = [slot for slot, _ in held]
        self._part_V = [placement.holders(slot).index(r) for slot, r in held]
        self._parts_V = [len(placement.holders(slot)) for slot, _ in held]
        by_slot = sorted(range(len(held)), key=lambda v: (self._slot_V[v], self._part_V[v]))
        self._by_slot = by_slot
        self._place_V = sorted(range(len(held)), key=by_slot.__getitem__)
        own = range(rank * each, (rank + 1) * each)
        lent = [(to, slot - rank * each) for slot, to in placement.loans if slot in own]
        self.lent = tuple(slot for _, slot in sorted(lent))
        """Own slots to send, by receiver."""
        self.sent = tuple(sum(to == r for to, _ in lent) for r in ranks)
        self.received = tuple(
            sum(placement.owner(slot) == r for slot in borrowed[rank]) for r in ranks
        )

    def split(self, counts: Tensor) -> Tensor:
        """Rows of each slot and copy of all ranks [V], from those of each slot."""
        slot, part, parts = (
            torch.tensor(values, device=counts.device)
            for values in (self._slot_V, self._part_V, self._parts_V)
        )
        rows = counts[slot]
        return rows * (part + 1) // parts - rows * part // parts

    def regroup(self, counts_V: Sequence[int]) -> Regroup:
        """From rows sorted by slot to rows sorted by slots and copies of all ranks."""
        return Regroup(tuple(counts_V[v] for v in self._by_slot), tuple(self._place_V))


class Lent(Function):
    """This rank's stacked weights [v, …] followed by the copies it has on loan [w, …]."""

    @staticmethod
    def forward(ctx: Any, stacked: Tensor, loans: Loans, lane: Lane) -> Tensor:
        ctx.loans, ctx.lane, ctx.own = loans, lane, stacked.shape[0]
        rows = stacked[list(loans.lent)]
        return torch.cat([stacked, lane.begin(rows, loans.sent, loans.received).wait()])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        loans = ctx.loans
        own, copies = grad.split([ctx.own, grad.shape[0] - ctx.own])
        returned = ctx.lane.begin(copies, loans.received, loans.sent).wait()
        own = own.clone()
        # One by one: an expert may be lent to several ranks, and sums keep their order.
        for slot, gradient in zip(loans.lent, returned, strict=True):
            own[slot] += gradient
        return own, None, None
