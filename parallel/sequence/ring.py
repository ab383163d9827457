"""Pass tensors round a ring, or two nested ones, while each is worked on.

In a double ring a host's blocks go round inside it while the next host's are already on their
way, so that slow links are used all the time and carry each block once per host (BurstAttention,
arXiv 2403.09347, section 3.2). It is one ring whose step is another ring.

All ranks of a ring make the same calls in the same order.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from comms.ledger import Ledger
from parallel.sequence.communicators import Ring

Visit = Callable[[Tensor, int], None]
"""Work on a tensor that came from the given place."""

Contribute = Callable[[Tensor, int], Tensor]
"""Work on a tensor from the given place; what goes home to that place."""


@dataclass(frozen=True)
class _Hop:
    """A tensor on its way to the next rank, and the one that arrives meanwhile."""

    works: list[dist.Work]
    sent: Tensor
    """Kept until the hop is over."""

    arriving: Tensor
    token: int

    def wait(self, ledger: Ledger) -> Tensor:
        with ledger.waiting(self.token):
            for work in self.works:
                work.wait()
        return self.arriving


@dataclass(frozen=True, kw_only=True)
class Carousel:
    """One ring or two nested ones; places count through hosts first, then inside them."""

    inner: Ring | None
    outer: Ring | None
    ledger: Ledger

    @property
    def place(self) -> int:
        """Of this rank."""
        outer = 0 if self.outer is None else self.outer.index
        inner = 0 if self.inner is None else self.inner.index
        return outer * self._width + inner

    @property
    def _width(self) -> int:
        return 1 if self.inner is None else self.inner.size

    def visit_all(self, own: Tensor, visit: Visit) -> None:
        """Visit every place's tensor, one's own first, while the next is on its way."""

        def visit_host(tensor: Tensor, host: int) -> None:
            self._visit(self.inner, tensor, lambda x, place: visit(x, host * self._width + place))

        self._visit(self.outer, own, visit_host)

    def gather_all(self, own: Tensor, contribute: Contribute, late: Callable[[], None]) -> Tensor:
        """Contribute to every place's tensor; the sum of what all places contributed to one's own.

        Sums follow one step behind the tensors. One's own contribution waits at home, so they make
        one hop less than there are places. `late` is called while they make their last hop; it
        may add to one's own contribution, in place.
        """

        def gather_host(tensor: Tensor, host: int) -> Tensor:
            return self._gather(
                self.inner,
                tensor,
                lambda x, place: contribute(x, host * self._width + place),
                late if self.outer is None else _nothing,
            )

        if self.outer is None:
            return gather_host(own, 0)
        return self._gather(self.outer, own, gather_host, late)

    def _visit(self, ring: Ring | None, own: Tensor, visit: Visit) -> None:
        if ring is None:
            visit(own, 0)
            return
        tensor = own
        for step in range(ring.size):
            hop = self._send_read(ring, tensor) if step + 1 < ring.size else None
            visit(tensor, ring.place(-step))
            if hop is not None:
                tensor = hop.wait(self.ledger)

    def _gather(
        self, ring: Ring | None, own: Tensor, contribute: Contribute, late: Callable[[], None]
    ) -> Tensor:
        if ring is None:
            total = contribute(own, 0)
            late()
            return total
        tensor, total, sums = own, own, None
        for step in range(ring.size):
            hop = self._send_read(ring, tensor) if step + 1 < ring.size else None
            part = contribute(tensor, ring.place(-step))
            if step == 0:
                total = part
            else:
                if sums is not None:
                    part += sums.wait(self.ledger)
                sums = self._send_sums(ring, part)
            if hop is not None:
                tensor = hop.wait(self.ledger)
        late()
        if sums is not None:
            total += sums.wait(self.ledger)
        return total

    def _send_read(self, ring: Ring, tensor: Tensor) -> _Hop:
        return self._send(ring, ring.reads, tensor, "ring_reads", tag=0)

    def _send_sums(self, ring: Ring, tensor: Tensor) -> _Hop:
        return self._send(ring, ring.sums, tensor, "ring_sums", tag=1)

    def _send(
        self, ring: Ring, group: dist.ProcessGroup, tensor: Tensor, operation: str, *, tag: int
    ) -> _Hop:
        """Start one hop. Tags keep both kinds apart where they share a group."""
        arriving = torch.empty_like(tensor)
        sent_bytes = tensor.numel() * tensor.element_size()
        token = self.ledger.begin("sp", operation, sent_bytes, group)
        send = dist.P2POp(dist.isend, tensor, group=group, tag=tag, group_peer=ring.place(1))
        receive = dist.P2POp(dist.irecv, arriving, group=group, tag=tag, group_peer=ring.place(-1))
        return _Hop(dist.batch_isend_irecv([send, receive]), tensor, arriving, token)


def _nothing() -> None:
    pass
