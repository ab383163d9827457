"""FSDP2's own collectives, summing instead of averaging, and counted where they are called."""

import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard._fsdp_collectives import (
    DefaultAllGather,
    DefaultReduceScatter,
)

from comms.ledger import Ledger
from comms.volume import all_reduce_bytes, gather_bytes


def count_collectives(
    module: FSDPModule, ledger: Ledger, axis: str, then: "ReplicaSums | None" = None
) -> None:
    """Let one module's gathers and reductions sum, and be counted in `ledger` on `axis`. With
    `then`, what follows a reduction over another axis is counted too."""
    module.set_force_sum_reduction_for_comms(True)
    module.set_gradient_divide_factor(1.0)
    module.set_custom_all_gather(_CountedAllGather(ledger, axis))
    module.set_custom_reduce_scatter(_CountedReduceScatter(ledger, axis, then))
    if then is not None:
        module.set_all_reduce_hook(then.end)


class ReplicaSums:
    """FSDP2's all-reduces of one module over `group`, which it makes by itself after the
    reduce-scatter of a last round."""

    def __init__(self, ledger: Ledger, axis: str, group: dist.ProcessGroup) -> None:
        self.last = True
        """Whether an all-reduce follows."""

        self._ledger = ledger
        self._axis = axis
        self._group = group
        self._under_way: list[int] = []

    def begin(self, shard: Tensor) -> None:
        """The reduce-scatter is called for; what it leaves in `shard` is summed next."""
        if self.last:
            sent_bytes = all_reduce_bytes(shard.nbytes, self._group.size())
            token = self._ledger.begin(self._axis, "all_reduce", sent_bytes, self._group)
            self._under_way.append(token)

    def end(self, reduced: Tensor) -> None:
        """The all-reduce is called for, and over on the CPU. Called by FSDP2."""
        if not self._under_way:
            # Alone on its shard axis a module has no reduce-scatter.
            self.begin(reduced)
        for token in self._under_way:
            self._ledger.ended(token)
        self._under_way.clear()


class _TimedWork(dist.Work):
    """A collective under way; waiting for it is counted."""

    def __init__(self, work: dist.Work, ledger: Ledger, token: int) -> None:
        super().__init__()
        self._work = work
        self._ledger = ledger
        self._token = token

    def wait(self, *arguments: object) -> bool:
        with self._ledger.waiting(self._token):
            return self._work.wait(*arguments)  # type: ignore[arg-type]


class _CountedAllGather(DefaultAllGather):
    def __init__(self, ledger: Ledger, axis: str) -> None:
        super().__init__()
        self._ledger = ledger
        self._axis = axis

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        async_op: bool = False,
    ) -> dist.Work | None:
        full_bytes = output_tensor.numel() * output_tensor.element_size()
        sent_bytes = gather_bytes(full_bytes, group.size())
        token = self._ledger.begin(self._axis, "all_gather", sent_bytes, group)
        with self._ledger.waiting(*([] if async_op else [token])):
            work = super().__call__(output_tensor, input_tensor, group, async_op)
        return None if work is None else _TimedWork(work, self._ledger, token)


class _CountedReduceScatter(DefaultReduceScatter):
    def __init__(self, ledger: Ledger, axis: str, then: ReplicaSums | None) -> None:
        super().__init__()
        self._ledger = ledger
        self._axis = axis
        self._then = then

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: dist.ReduceOp.RedOpType,
        async_op: bool = False,
    ) -> dist.Work:
        full_bytes = input_tensor.numel() * input_tensor.element_size()
        sent_bytes = gather_bytes(full_bytes, group.size())
        token = self._ledger.begin(self._axis, "reduce_scatter", sent_bytes, group)
        with self._ledger.waiting(token):
            work = super().__call__(output_tensor, input_tensor, group, op, async_op)
        if self._then is not None:
            self._then.begin(output_tensor)
        return work
