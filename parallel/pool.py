"""The sequence groups of a layout's pools: communicators made once, looked up every round."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from comms.ledger import Ledger
from comms.volume import all_reduce_bytes
from parallel.attention import AttentionFn, packed_attention
from parallel.layout import Layout
from parallel.sequence.attention import SequenceAttention
from parallel.sequence.communicators import RingOrder, SequenceCommunicators, make_communicators
from parallel.sequence.stretches import AttentionScheme


class SequencePool:
    """How this rank attends together with others, by the scheme of its group."""

    def __init__(self, communicators: SequenceCommunicators, ledger: Ledger) -> None:
        self._communicators = communicators
        self._ledger = ledger
        self._attention: dict[AttentionScheme, AttentionFn] = {}
        self._order: RingOrder | None = None

    def attention(self, scheme: AttentionScheme) -> AttentionFn:
        """Attention over this rank's aligned group of `scheme.degree` ranks, which all call it."""
        if scheme.degree == 1:
            return packed_attention
        if scheme not in self._attention:
            groups = self._communicators.of(scheme)
            if self._order is not None:
                groups = groups.ordered(self._order)
            self._attention[scheme] = SequenceAttention(groups, scheme, ledger=self._ledger)
        return self._attention[scheme]

    def order_rings(self, order: RingOrder) -> None:
        """Let tensors pass the ranks of rings in another order from now on. All ranks of the pool
        call it alike, between two steps; sums are then formed in another order too."""
        self._order = order
        self._attention.clear()

    def sum_over(self, size: int) -> Callable[[Tensor], Tensor] | None:
        """Sums a tensor over this rank's aligned group of `size`; None for a rank alone."""
        if size == 1:
            return None
        group = self._communicators.whole(size)

        @torch.compiler.disable
        def total(values: Tensor) -> Tensor:
            summed = values.detach().clone()
            payload_bytes = summed.numel() * summed.element_size()
            sent_bytes = all_reduce_bytes(payload_bytes, size)
            with self._ledger.collective("sp", "all_reduce", sent_bytes, group):
                dist.all_reduce(summed, group=group)
            return summed

        return total


def open_pool(
    layout: Layout, *, rank: int, schemes: list[AttentionScheme], ledger: Ledger
) -> SequencePool:
    """Make the groups of `schemes` in every pool of the layout. All ranks call it alike."""
    own: SequenceCommunicators | None = None
    sizes = sorted({scheme.degree for scheme in schemes if scheme.degree > 1})
    shared = [scheme for scheme in schemes if scheme.degree > 1]
    for pool in sorted({layout.pool(r) for r in range(layout.world_size)}):
        # Making a group is collective over the world: everybody takes part in everybody's.
        made = make_communicators(pool, sizes, shared)
        own = made if rank in pool else own
    assert own is not None
    return SequencePool(own, ledger)
