"""Weights, gradients and optimizer states of one model, each spread over its own number of ranks.

After InternEvo (arXiv 2401.09149), AMSP (arXiv 2311.00257) and the three-level partitioning for
Frontier (arXiv 2501.04266). Weights in the compute dtype lie with FSDP2 on the innermost ranks, so
that forward and backward gather over fast links alone; slow links carry, once per step, summed
gradients out and new weights back.

In plain PyTorch, on ranks that have joined a process group:

    sharding = HierarchicalSharding(model, blocks=model.layers, widths=Widths(optimizer=8), ...)
    optimizer = torch.optim.AdamW(sharding.parameters(), lr=1e-3)
    for batch in batches:
        sharding.gradients.start_round(last=True)
        model(batch).backward()
        sharding.gradients.finish()
        optimizer.step()
        sharding.publish()
        sharding.gradients.zero()

Guarantees, each asserted in tests/parallel/hierarchy/test_sharding.py:
- any widths give the weights of the one-process run, in fp32 within rounding of sums;
- with one width for all states, they are bitwise those of FSDP2 with the same compute dtype;
- frozen parameters keep their values and have neither gradients nor masters;
- masters keep the fp32 values that the model was given, whatever the compute dtype.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.utils._pytree import tree_map

from comms.ledger import Ledger
from parallel.counted import count_collectives
from parallel.hierarchy.gradients import HierarchicalGradients
from parallel.hierarchy.mesh import build_hierarchy_mesh
from parallel.hierarchy.publish import Publisher, local_shard
from parallel.hierarchy.shards import ShardGroup, cut_dim, make_groups
from parallel.hierarchy.traffic import Line
from parallel.hierarchy.widths import AXES, Widths


class HierarchicalSharding:
    """Spread `model`, in place. All data ranks make it alike, with the same or a meta model.

    Gradients are summed over the data ranks, not averaged. A model on meta is given storage by
    `model.to_empty(...)`; then set the masters and `publish`, or set the weights and `adopt`.
    Raises ValueError for parameters without dims, for parameters that are DTensors already, and
    for widths that do not fit the ranks.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        blocks: Sequence[nn.Module],
        widths: Widths,
        param_dtype: torch.dtype = torch.float32,
        mesh: DeviceMesh | None = None,
        device_type: str = "cpu",
        reshard_after_forward: bool = True,
        quantized_gather: bool = False,
        ledger: Ledger | None = None,
    ) -> None:
        """`mesh` comes from `build_hierarchy_mesh`; left out, it is made over all ranks."""
        _require_plain(model)
        self._model = model
        self.mesh = build_hierarchy_mesh(widths, device_type) if mesh is None else mesh
        ledger = Ledger() if ledger is None else ledger
        self._lines = {a: Line(a, self.mesh.get_group(a), ledger) for a in AXES}
        frees = reshard_after_forward and widths.weights > 1
        self.groups = _group(model, blocks, widths, self.mesh, frees=frees)
        _adopt_whole(model, self.groups)
        _shard_weights(model, blocks, widths, self.mesh, param_dtype, frees, ledger)
        self._publisher = Publisher(
            self.groups, param_dtype=param_dtype, lines=self._lines, quantized=quantized_gather
        )

    @cached_property
    def gradients(self) -> HierarchicalGradients:
        """The sums over data ranks. First asked for when the model has storage.

        Raises RuntimeError while parameters are on meta.
        """
        empty = [name for name, p in self._model.named_parameters() if p.is_meta]
        if empty:
            raise RuntimeError(
                f"{empty[0]} and {len(empty) - 1} more parameters are on meta; give the model "
                "storage with model.to_empty(device=...) first"
            )
        return HierarchicalGradients(self._model, self.groups, mesh=self.mesh, lines=self._lines)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The fp32 masters by the parameters' own names: DTensors of the whole shape."""
        for group in self.groups:
            yield from group.masters.items()

    def parameters(self) -> Iterator[nn.Parameter]:
        """The fp32 masters: what an optimizer is built on."""
        return (master for _, master in self.named_parameters())

    def publish(self) -> None:
        """Set the weights from the masters. After each update, and after loading masters."""
        self._publisher.publish(self._model)

    def adopt(self) -> None:
        """Set the masters from the weights, without traffic. After filling or loading weights."""
        for group in self.groups:
            for slot in group.slots:
                group.adopt_shard(slot, local_shard(self._model.get_parameter(slot.name)))


def _require_plain(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if isinstance(parameter, DTensor):
            raise ValueError(
                f"{name} is spread already ({parameter.placements}); hierarchical sharding takes "
                "plain parameters: apply it without tensor or expert parallelism"
            )
        if parameter.ndim == 0:
            raise ValueError(f"{name} has no dims; give it the shape (1,)")


def _group(
    model: nn.Module,
    blocks: Sequence[nn.Module],
    widths: Widths,
    mesh: DeviceMesh,
    *,
    frees: bool,
) -> list[ShardGroup]:
    device = torch.device(mesh.device_type)
    if device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())

    def make(parameters: dict[str, nn.Parameter], is_block: bool) -> ShardGroup:
        return ShardGroup(
            parameters,
            widths=widths,
            mesh=mesh,
            device=device,
            is_block=is_block,
            gathers_per_round=2 if frees and is_block else 1,
        )

    return make_groups(model, blocks, make)


def _adopt_whole(model: nn.Module, groups: Sequence[ShardGroup]) -> None:
    """Take the masters before weights are rounded to the compute dtype."""
    for group in groups:
        for slot in group.slots:
            parameter = model.get_parameter(slot.name)
            if not parameter.is_meta:
                group.adopt_whole(slot, parameter.detach())


def _shard_weights(
    model: nn.Module,
    blocks: Sequence[nn.Module],
    widths: Widths,
    mesh: DeviceMesh,
    param_dtype: torch.dtype,
    frees: bool,
    ledger: Ledger,
) -> None:
    """Round parameters to the compute dtype and leave each rank its shard of them."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(param_dtype)
    if widths.weights == 1:
        # FSDP2 on one rank would copy every block's weights and gradients once more.
        for module in (*blocks, model):
            module.register_forward_pre_hook(_cast_inputs(param_dtype), with_kwargs=True)
        return
    policy = MixedPrecisionPolicy(param_dtype=param_dtype, reduce_dtype=torch.float32)
    for module in (*blocks, model):
        fully_shard(
            module,
            mesh=mesh["weights"],
            mp_policy=policy,
            # What is left of the model is needed again at once in backward.
            reshard_after_forward=frees and module is not model,
            shard_placement_fn=lambda p: Shard(cut_dim(p.shape, widths)),
        )
    for module in model.modules():
        if isinstance(module, FSDPModule):
            count_collectives(module, ledger, "weights")


def _cast_inputs(dtype: torch.dtype) -> Any:
    """A forward pre-hook that casts floating-point inputs, as FSDP2 does under mixed precision."""

    def cast(value: Any) -> Any:
        floating = isinstance(value, Tensor) and value.is_floating_point()
        return value.to(dtype) if floating else value

    def hook(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        return tree_map(cast, args), tree_map(cast, kwargs)

    return hook
