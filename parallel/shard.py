"""Parameters, gradients and optimizer states sharded with FSDP2, every byte counted."""

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.placement_types import _StridedShard

from comms.compression.fsdp import ShardHooks
from comms.ledger import Ledger
from parallel.counted import ReplicaSums, count_collectives
from parallel.mesh import Meshes


def shard_parameters(
    model: nn.Module,
    *,
    blocks: Sequence[nn.Module],
    experts: Sequence[nn.Module],
    meshes: Meshes,
    param_dtype: torch.dtype,
    reshard_after_forward: bool,
    ledger: Ledger,
    sum_over_replicas: bool = True,
) -> list[ReplicaSums]:
    """Shard each block, then what is left of the model, over `shard`, replicated over `replica`;
    what counts the sums over `replica`, for `ShardedGradients`. Without `sum_over_replicas` the
    caller sums gradients over `replica`.

    Parameters of `experts`, already cut over `ep`, are sharded over `expert_shard` alone.
    Parameters stay fp32 and are gathered as `param_dtype`; gradients are reduced in fp32 and
    summed, not averaged. All ranks call it, before parameters have storage or after.
    """
    policy = MixedPrecisionPolicy(param_dtype=param_dtype, reduce_dtype=torch.float32)
    dense, sparse = _fsdp_meshes(meshes, sum_over_replicas)
    sums_here = sum_over_replicas and meshes.layout.replica > 1
    sums = []
    if meshes.layout.ep > 1:
        for module in experts:
            fully_shard(
                module,
                mesh=sparse,
                mp_policy=policy,
                reshard_after_forward=reshard_after_forward,
                shard_placement_fn=_placement(sparse["expert_shard"].size()),
            )
            sums += _count(module, "expert_shard", meshes, ledger, sums_here)
    for block in blocks:
        fully_shard(
            block,
            mesh=dense,
            mp_policy=policy,
            reshard_after_forward=reshard_after_forward,
            shard_placement_fn=_placement(meshes.layout.shard),
        )
        sums += _count(block, "shard", meshes, ledger, sums_here)
    # The root's own parameters are needed again at once in backward.
    fully_shard(
        model,
        mesh=dense,
        mp_policy=policy,
        reshard_after_forward=False,
        shard_placement_fn=_placement(meshes.layout.shard),
    )
    return sums + _count(model, "shard", meshes, ledger, sums_here)


def _fsdp_meshes(meshes: Meshes, sum_over_replicas: bool) -> tuple[DeviceMesh, DeviceMesh]:
    """For dense parameters and for experts: the shard axis, behind `replica` where FSDP2 sums over
    that too."""
    if sum_over_replicas:
        return meshes.dense["replica", "shard"], meshes.experts["replica", "expert_shard"]
    return meshes.dense["shard"], meshes.experts["expert_shard"]


def _count(
    module: nn.Module, axis: str, meshes: Meshes, ledger: Ledger, sums_over_replicas: bool
) -> list[ReplicaSums]:
    """Sum gradients instead of averaging them, and count what is sent."""
    assert isinstance(module, FSDPModule)
    sums = []
    if sums_over_replicas:
        sums = [ReplicaSums(ledger, "replica", meshes.group("replica"))]
    count_collectives(module, ledger, axis, *sums)
    return sums


def _placement(ranks: int) -> Callable[[nn.Parameter], Shard | None]:
    """Where to cut a parameter: along the first dim, with two exceptions.

    What `tp` or `ep` cut there already is cut along another dim, so that each rank's part stays one
    box. Stacked experts are cut inside the experts where their number does not divide evenly: few
    of them over many ranks would leave most ranks with nothing.
    """

    def place(parameter: nn.Parameter) -> Shard | None:
        taken = _cut_dims(parameter)
        uneven_experts = parameter.ndim == 3 and parameter.shape[0] % ranks != 0
        if 0 not in taken and not uneven_experts:
            return None
        dims = [d for d in range(1, parameter.ndim) if d not in taken]
        even = [dim for dim in dims if parameter.shape[dim] % ranks == 0]
        return Shard(even[0]) if even else None

    return place


def _cut_dims(parameter: nn.Parameter) -> set[int]:
    if not isinstance(parameter, DTensor):
        return set()
    return {p.dim for p in parameter.placements if isinstance(p, Shard | _StridedShard)}


def fsdp_modules(model: nn.Module) -> list[FSDPModule]:
    """Every module that `fully_shard` was applied to, the root first."""
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


class ShardedGradients:
    """Gradients of an FSDP2 model: reduce-scattered every round, all-reduced over `replica` in
    the last one, so that no rank ever holds more than its shard between rounds."""

    def __init__(
        self,
        model: nn.Module,
        *,
        ranks: int,
        ledger: Ledger,
        replica_sums: Sequence[ReplicaSums] = (),
        hooks: ShardHooks | None = None,
    ) -> None:
        """`ranks` hold this model together, in shards and copies; `hooks` sum over the copies in
        place of FSDP2."""
        self._modules = fsdp_modules(model)
        self._ledger = ledger
        self._replica_sums = replica_sums
        self._hooks = hooks
        self._ranks = ranks
        self._by_shards: dict[int, list[nn.Parameter]] = {}
        for parameter in model.parameters():
            self._by_shards.setdefault(_num_shards(parameter), []).append(parameter)

    def start_round(self, *, last: bool) -> None:
        """Sum over `replica` only in the last round."""
        for sums in self._replica_sums:
            sums.last = last
        for module in self._modules:
            module.set_requires_all_reduce(last, recurse=False)
            module.set_is_last_backward(last)
        if self._hooks is not None:
            self._hooks.start_round(last=last)

    def finish(self) -> None:
        """FSDP2 has waited for its own reductions at the end of backward."""
        if self._hooks is not None:
            with self._ledger.waiting():
                self._hooks.finish()

    def squared_norm(self) -> Tensor:
        """Sum of squares of the local shards, each divided by how many ranks hold the same."""
        shares = []
        for shards, parameters in self._by_shards.items():
            if grads := _local_gradients(parameters):
                norms = torch.stack(torch._foreach_norm(grads)).float()
                shares.append(norms.square().sum() * (shards / self._ranks))
        return torch.stack(shares).sum()

    def zero(self) -> None:
        """Drop the gradients; the next round makes new ones."""
        for parameters in self._by_shards.values():
            for parameter in parameters:
                parameter.grad = None


def _local_gradients(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    grads = [p.grad for p in parameters if p.grad is not None]
    return [g.to_local() if isinstance(g, DTensor) else g for g in grads]


def _num_shards(parameter: nn.Parameter) -> int:
    """Into how many different parts a parameter is cut."""
    if not isinstance(parameter, DTensor):
        return 1
    sizes = zip(parameter.placements, parameter.device_mesh.shape, strict=True)
    return prod(size for placement, size in sizes if not placement.is_replicate())
