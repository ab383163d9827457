"""FSDP2's own collectives, summing instead of averaging, and counted where they are called."""

import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard._fsdp_collectives import (
    DefaultAllGather,
    DefaultReduceScatter,
)

from comms.ledger import Ledger
from comms.volume import gather_bytes


def count_collectives(module: FSDPModule, ledger: Ledger, axis: str) -> None:
    """Let one module's gathers and reductions sum, and be counted in `ledger` on `axis`."""
    module.set_force_sum_reduction_for_comms(True)
    module.set_gradient_divide_factor(1.0)
    module.set_custom_all_gather(_CountedAllGather(ledger, axis))
    module.set_custom_reduce_scatter(_CountedReduceScatter(ledger, axis))


class _TimedWork(dist.Work):
    """A collective under way; waiting for it is counted."""

    def __init__(self, work: dist.Work, ledger: Ledger) -> None:
        super().__init__()
        self._work = work
        self._ledger = ledger

    def wait(self, *arguments: object) -> bool:
        with self._ledger.waiting():
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
        self._ledger.sent(self._axis, "all_gather", gather_bytes(full_bytes, group.size()))
        with self._ledger.waiting():
            work = super().__call__(output_tensor, input_tensor, group, async_op)
        return None if work is None else _TimedWork(work, self._ledger)


class _CountedReduceScatter(DefaultReduceScatter):
    def __init__(self, ledger: Ledger, axis: str) -> None:
        super().__init__()
        self._ledger = ledger
        self._axis = axis

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: dist.ReduceOp.RedOpType,
        async_op: bool = False,
    ) -> dist.Work:
        full_bytes = input_tensor.numel() * input_tensor.element_size()
        self._ledger.sent(self._axis, "reduce_scatter", gather_bytes(full_bytes, group.size()))
        with self._ledger.waiting():
            return super().__call__(output_tensor, input_tensor, group, op, async_op)
