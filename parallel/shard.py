"""Parameters, gradients and optimizer states sharded with FSDP2, every byte counted."""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp._fully_shard._fsdp_collectives import (
    DefaultAllGather,
    DefaultReduceScatter,
)
from torch.distributed.tensor import DTensor, Shard

from comms.ledger import Ledger
from comms.volume import all_reduce_bytes, gather_bytes


def shard_parameters(
    model: nn.Module,
    *,
    blocks: Sequence[nn.Module],
    mesh: DeviceMesh,
    param_dtype: torch.dtype,
    reshard_after_forward: bool,
    ledger: Ledger,
) -> None:
    """Shard each block, then what is left of the model, over `shard`, replicated over `replica`.

    Parameters stay fp32 and are gathered as `param_dtype`; gradients are reduced in fp32 and
    summed, not averaged. All ranks call it, before parameters have storage or after.
    """
    place = _placement(mesh["shard"].size())
    policy = MixedPrecisionPolicy(param_dtype=param_dtype, reduce_dtype=torch.float32)
    for block in blocks:
        fully_shard(
            block,
            mesh=mesh,
            mp_policy=policy,
            reshard_after_forward=reshard_after_forward,
            shard_placement_fn=place,
        )
    # The root's own parameters are needed again at once in backward.
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    replicas = mesh["replica"].size()
    for module in fsdp_modules(model):
        module.set_force_sum_reduction_for_comms(True)
        module.set_gradient_divide_factor(1.0)
        module.set_custom_all_gather(_CountedAllGather(ledger))
        module.set_custom_reduce_scatter(_CountedReduceScatter(ledger))
        if replicas > 1:
            module.set_all_reduce_hook(_AllReduceCounter(ledger, replicas))


def _placement(ranks: int) -> Callable[[nn.Parameter], Shard | None]:
    """Where to cut a parameter. Stacked experts are cut inside the experts where their number does
    not divide evenly: few of them over many ranks would leave most ranks with nothing."""

    def place(parameter: nn.Parameter) -> Shard | None:
        if parameter.ndim != 3 or parameter.shape[0] % ranks == 0:
            return None
        even = [dim for dim in (1, 2) if parameter.shape[dim] % ranks == 0]
        return Shard(even[0]) if even else None

    return place


def fsdp_modules(model: nn.Module) -> list[FSDPModule]:
    """Every module that `fully_shard` was applied to, the root first."""
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


class ShardedGradients:
    """Gradients of an FSDP2 model: reduce-scattered every round, all-reduced over `replica` in
    the last one, so that no rank ever holds more than its shard between rounds."""

    def __init__(self, model: nn.Module) -> None:
        self._parameters = list(model.parameters())
        self._modules = fsdp_modules(model)

    def start_round(self, *, last: bool) -> None:
        """Sum over `replica` only in the last round."""
        for module in self._modules:
            module.set_requires_all_reduce(last, recurse=False)
            module.set_is_last_backward(last)

    def finish(self) -> None:
        """FSDP2 has waited for its reductions at the end of backward."""

    def squared_norm(self) -> Tensor:
        """Sum of squares of the local shards."""
        norms = torch._foreach_norm(self._local())
        return torch.stack(norms).float().square().sum()

    def scale(self, factor: float) -> None:
        """Multiply the local shards in place."""
        torch._foreach_mul_(self._local(), factor)

    def zero(self) -> None:
        """Drop the gradients; the next round makes new ones."""
        for parameter in self._parameters:
            parameter.grad = None

    def _local(self) -> list[Tensor]:
        grads = [p.grad for p in self._parameters if p.grad is not None]
        return [g.to_local() if isinstance(g, DTensor) else g for g in grads]


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
    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self._ledger = ledger

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        async_op: bool = False,
    ) -> dist.Work | None:
        full_bytes = output_tensor.numel() * output_tensor.element_size()
        self._ledger.sent("shard", "all_gather", gather_bytes(full_bytes, group.size()))
        with self._ledger.waiting():
            work = super().__call__(output_tensor, input_tensor, group, async_op)
        return None if work is None else _TimedWork(work, self._ledger)


class _CountedReduceScatter(DefaultReduceScatter):
    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self._ledger = ledger

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: dist.ReduceOp.RedOpType,
        async_op: bool = False,
    ) -> dist.Work:
        full_bytes = input_tensor.numel() * input_tensor.element_size()
        self._ledger.sent("shard", "reduce_scatter", gather_bytes(full_bytes, group.size()))
        with self._ledger.waiting():
            return super().__call__(output_tensor, input_tensor, group, op, async_op)


class _AllReduceCounter:
    """Called by FSDP2 after its all-reduce over `replica`, with what was reduced."""

    def __init__(self, ledger: Ledger, ranks: int) -> None:
        self._ledger = ledger
        self._ranks = ranks

    def __call__(self, reduced: Tensor) -> None:
        payload_bytes = reduced.numel() * reduced.element_size()
        self._ledger.sent("replica", "all_reduce", all_reduce_bytes(payload_bytes, self._ranks))
