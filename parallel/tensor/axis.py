"""The ranks that share every matrix product, and what they exchange.

Megatron-LM's scheme (arXiv 1909.08053, section 3): activations are the same on all ranks outside a
region; inside, every rank computes with its part of the weights. A region begins with
`begin_region` (its gradient is summed) and ends with `sum_partial` (its output is summed).

Guarantees, each asserted in tests/parallel/test_tensor.py:
- what is the same on all ranks outside a region has bitwise the same gradient on all of them;
- every byte is counted, and the counts are those of `comms.volume`.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.distributed.device_mesh import DeviceMesh

from comms.ledger import Ledger, Started
from comms.volume import all_reduce_bytes, gather_bytes


class TensorAxis:
    """One line of ranks. All of them call every method, in the same order.

    Outside compiled graphs: a graph would count bytes once, when it is made.
    """

    def __init__(self, mesh: DeviceMesh, ledger: Ledger) -> None:
        if mesh.ndim != 1:
            raise ValueError(
                f"a tensor axis is a line of ranks, got a mesh of {mesh.ndim} dims "
                f"{mesh.mesh_dim_names}; pass one of its axes, such as mesh['tp']"
            )
        self.mesh = mesh
        self.ranks = mesh.size()
        self.rank = mesh.get_local_rank()
        self.name = "tp" if mesh.mesh_dim_names is None else mesh.mesh_dim_names[0]
        self._group = mesh.get_group()
        self._ledger = ledger

    @torch.compiler.disable
    def begin_region(self, x: Tensor) -> Tensor:
        """`x` unchanged. Its gradients, of which each rank has a part, are summed."""
        return _BeginRegion.apply(x, self)

    @torch.compiler.disable
    def sum_partial(self, x: Tensor) -> Tensor:
        """The sum of all ranks' `x`, which is overwritten. The gradient passes unchanged."""
        return _SumPartial.apply(x, self)

    @torch.compiler.disable
    def on_first_rank(self, x: Tensor) -> Tensor:
        """`x` unchanged. Its gradient passes on the first rank and is zero on the others.

        For what all ranks compute alike inside a region, whose end would count it once per rank.
        """
        return _OnFirstRank.apply(x, self)

    @torch.compiler.disable
    def gather_last(self, x: Tensor) -> Tensor:
        """All ranks' `x` beside each other in the last dim. The gradient is this rank's part."""
        return _GatherLast.apply(x, self)

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum contiguous `x` over the ranks, in place."""
        with self._ledger.waiting(self._begin_sum(x)):
            dist.all_reduce(x, group=self._group)
        return x

    def start_all_reduce(self, x: Tensor) -> Started:
        """The same, not waited for; hand what it returns to `finish`."""
        token = self._begin_sum(x)
        work = dist.all_reduce(x, group=self._group, async_op=True)
        assert work is not None
        return Started(work, token)

    def finish(self, sums: Sequence[Started]) -> None:
        """Wait for sums that were started."""
        for started in sums:
            self._ledger.wait(started)

    def all_gather(self, x: Tensor) -> Tensor:
        """Contiguous `x` of all ranks, in their order: [ranks, *shape of x]. No gradient."""
        gathered = x.new_empty(self.ranks, *x.shape)
        sent_bytes = gather_bytes(gathered.numel() * gathered.element_size(), self.ranks)
        with self._ledger.collective(self.name, "all_gather", sent_bytes, self._group):
            dist.all_gather(list(gathered.unbind()), x, group=self._group)
        return gathered

    def _begin_sum(self, x: Tensor) -> int:
        sent_bytes = all_reduce_bytes(x.numel() * x.element_size(), self.ranks)
        return self._ledger.begin(self.name, "all_reduce", sent_bytes, self._group)


class _BeginRegion(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: TensorAxis) -> Tensor:
        ctx.axis = axis
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        # A copy: autograd may have handed the same memory to somebody else.
        return ctx.axis.all_reduce(grad.clone(memory_format=torch.contiguous_format)), None


class _SumPartial(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: TensorAxis) -> Tensor:
        if x.is_contiguous():
            ctx.mark_dirty(x)
            return axis.all_reduce(x)
        return axis.all_reduce(x.contiguous())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _OnFirstRank(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: TensorAxis) -> Tensor:
        ctx.first = axis.rank == 0
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad if ctx.first else torch.zeros_like(grad), None


class _GatherLast(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: TensorAxis) -> Tensor:
        ctx.part = slice(axis.rank * x.shape[-1], (axis.rank + 1) * x.shape[-1])
        return axis.all_gather(x.contiguous()).movedim(0, -2).flatten(-2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad[..., ctx.part], None
