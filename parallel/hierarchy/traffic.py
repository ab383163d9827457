"""Collectives of the hierarchy's axes, each counted where it is called."""

from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp._fully_shard._fsdp_collectives import (
    DefaultAllGather,
    DefaultReduceScatter,
)

from comms.ledger import Ledger, Started
from comms.volume import all_reduce_bytes, gather_bytes

# torch names its collectives of one tensor differently from release to release; FSDP2's own calls
# are the same in all of them.
_ALL_GATHER = DefaultAllGather()
_REDUCE_SCATTER = DefaultReduceScatter()


@dataclass(frozen=True)
class Line:
    """The ranks that meet this one on an axis. All of them make every call, in the same order.

    Each call starts a collective and returns what to `wait` for; None where the rank is alone.
    """

    axis: str
    group: dist.ProcessGroup
    ledger: Ledger

    @property
    def ranks(self) -> int:
        """Ranks on this line."""
        return self.group.size()

    def reduce_scatter(self, output: Tensor, source: Tensor) -> Started | None:
        """Sum `source`, which has one part per rank, and keep this rank's part in `output`."""
        if self.ranks == 1:
            return None
        sent_bytes = gather_bytes(_bytes_of(source), self.ranks)
        token = self.ledger.begin(self.axis, "reduce_scatter", sent_bytes, self.group)
        work = _REDUCE_SCATTER(
            output.view(-1), source.view(-1), self.group, dist.ReduceOp.SUM, async_op=True
        )
        return Started(work, token)

    def all_reduce(self, values: Tensor) -> Started | None:
        """Sum in place."""
        if self.ranks == 1:
            return None
        sent_bytes = all_reduce_bytes(_bytes_of(values), self.ranks)
        token = self.ledger.begin(self.axis, "all_reduce", sent_bytes, self.group)
        return _started(dist.all_reduce(values, group=self.group, async_op=True), token)

    def all_gather(self, output: Tensor, source: Tensor) -> Started | None:
        """Put every rank's `source` into `output`, one part per rank."""
        if self.ranks == 1:
            return None
        sent_bytes = gather_bytes(_bytes_of(output), self.ranks)
        token = self.ledger.begin(self.axis, "all_gather", sent_bytes, self.group)
        work = _ALL_GATHER(output.view(-1), source.view(-1), self.group, async_op=True)
        return _started(work, token)

    def wait(self, started: Started | None) -> None:
        """Wait for a collective; the time counts as communication that compute did not hide."""
        if started is not None:
            self.ledger.wait(started)


def _started(work: dist.Work | None, token: int) -> Started:
    assert work is not None, "what is started asynchronously can be waited for"
    return Started(work, token)


def _bytes_of(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
