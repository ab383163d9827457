"""`parallelize`: the one ordered application of a layout to a model.

The order, which `parallelize` keeps:

1. tensor: projections are cut over `tp`, so that what follows sees cut parameters;
2. experts: stacked experts are cut over `ep`, and tokens travel to them;
3. compilation of blocks, before sharding, so that gathers stay outside the graphs;
4. sharding over `shard` (experts: `expert_shard`), copies over `replica`, or, with narrower widths,
   hierarchical sharding.

A pipeline comes before all of it: each stage is a model of its own. Which tokens ranks see together
(`sp`) is no property of the model: it comes with every forward.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from comms.buckets import GradientBuckets
from comms.compression.fsdp import compress_shards
from comms.ledger import Ledger
from parallel.config import ParallelConfig
from parallel.counted import ReplicaSums
from parallel.gradients import Gradients
from parallel.hierarchy.mesh import build_hierarchy_mesh
from parallel.hierarchy.sharding import HierarchicalSharding
from parallel.hierarchy.widths import Widths
from parallel.layout import Layout
from parallel.mesh import Meshes
from parallel.replicas import Replicas
from parallel.shard import ShardedGradients, shard_parameters


@dataclass(frozen=True, kw_only=True)
class ModelParts:
    """What of a model can be spread, named by the model's author."""

    blocks: Sequence[nn.Module]
    """Units of sharding and compilation, in the order in which they run."""

    experts: Sequence[nn.Module] = ()
    """Modules whose parameters are all stacked by expert, [E, …]."""

    split_tensor: Callable[[DeviceMesh, Ledger], object] | None = None
    """Cuts the projections over a mesh of one axis; None where the model has no such way."""

    split_experts: Callable[[Meshes, Ledger], None] | None = None
    """Cuts the experts over `ep` and lets tokens travel; None where the model has no experts."""


class Spread(Protocol):
    """A model that was spread, once it has storage."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The fp32 parameters that an optimizer updates, by the model's own names."""

    def gradients(self) -> Gradients:
        """How their gradients are summed. Called once."""

    def publish(self) -> None:
        """Let the model compute with new values of the parameters. All ranks call it."""


def parallelize(
    model: nn.Module,
    *,
    parts: ModelParts,
    meshes: Meshes,
    config: ParallelConfig,
    param_dtype: torch.dtype,
    compile_blocks: bool,
    ledger: Ledger,
    replicas: Replicas | None = None,
) -> Spread:
    """Spread `model`, in place, in the order above. All ranks call it; the model may be on meta.

    Parameters that are neither cut nor computed in another dtype are left alone: replicas then
    exchange gradients through `GradientBuckets`, which moves fewer bytes than FSDP2. `replicas`
    takes the place of either's sum over `replica`; weights must not be sharded apart then.
    """
    layout = meshes.layout
    if layout.tp > 1:
        assert parts.split_tensor is not None, "this model has no tensor-parallel form"
        parts.split_tensor(meshes.dense["tp"], ledger)
    if layout.ep > 1:
        assert parts.split_experts is not None, "this model has no experts"
        parts.split_experts(meshes, ledger)
    if compile_blocks:
        for block in parts.blocks:
            block.compile()
    if layout.hierarchical:
        return _shard_apart(model, parts.blocks, meshes, config, param_dtype, ledger)
    if layout.shard > 1 or layout.tp > 1 or param_dtype != torch.float32:
        sums = shard_parameters(
            model,
            blocks=parts.blocks,
            experts=parts.experts,
            meshes=meshes,
            param_dtype=param_dtype,
            reshard_after_forward=config.reshard_after_forward,
            ledger=ledger,
            sum_over_replicas=replicas is None,
        )
        return _Sharded(model, layout, ledger, replicas, sums)
    return _Whole(model, meshes, config.bucket_bytes, ledger, replicas)


class _Sharded:
    """A model whose parameters, gradients and optimizer states are cut alike by FSDP2."""

    def __init__(
        self,
        model: nn.Module,
        layout: Layout,
        ledger: Ledger,
        replicas: Replicas | None,
        replica_sums: Sequence[ReplicaSums],
    ) -> None:
        self._model = model
        self._layout = layout
        self._ledger = ledger
        self._replicas = replicas
        self._replica_sums = replica_sums

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return self._model.named_parameters()

    def gradients(self) -> Gradients:
        hooks = None
        if self._replicas is not None:
            lane = self._replicas.lane()
            hooks = compress_shards(
                self._model, lane, average=False, tensor_parallel=self._layout.tp > 1
            )
            lane.announce(hooks.flat_gradients())
        return ShardedGradients(
            self._model,
            ranks=self._layout.island_ranks // self._layout.pp,
            ledger=self._ledger,
            replica_sums=self._replica_sums,
            hooks=hooks,
        )

    def publish(self) -> None:
        """The optimizer has written into the parameters themselves."""


class _Whole:
    """A model that every rank has whole, in fp32."""

    def __init__(
        self,
        model: nn.Module,
        meshes: Meshes,
        bucket_bytes: int,
        ledger: Ledger,
        replicas: Replicas | None,
    ) -> None:
        self._model = model
        self._meshes = meshes
        self._bucket_bytes = bucket_bytes
        self._ledger = ledger
        self._replicas = replicas

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return self._model.named_parameters()

    def gradients(self) -> Gradients:
        lane = None if self._replicas is None else self._replicas.lane()
        buckets = GradientBuckets(
            [p for p in self._model.parameters() if p.requires_grad],
            group=self._meshes.group("replica") if self._meshes.layout.replica > 1 else None,
            bucket_bytes=self._bucket_bytes,
            ledger=self._ledger,
            exchange=lane,
        )
        if lane is not None:
            lane.announce(buckets.flat_gradients())
        return buckets

    def publish(self) -> None:
        """The optimizer has written into the parameters themselves."""


class _Apart:
    """A model whose optimizer updates masters that are cut more finely than its weights."""

    def __init__(self, sharding: HierarchicalSharding) -> None:
        self._sharding = sharding

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return self._sharding.named_parameters()

    def gradients(self) -> Gradients:
        return self._sharding.gradients

    def publish(self) -> None:
        self._sharding.publish()


def _shard_apart(
    model: nn.Module,
    blocks: Sequence[nn.Module],
    meshes: Meshes,
    config: ParallelConfig,
    param_dtype: torch.dtype,
    ledger: Ledger,
) -> Spread:
    layout = meshes.layout
    widths = Widths(
        weights=layout.shard_weights or layout.shard,
        gradients=layout.shard_gradients or layout.shard,
        optimizer=layout.shard,
    )
    mesh = build_hierarchy_mesh(widths, meshes.dense.device_type, meshes.lines)
    sharding = HierarchicalSharding(
        model,
        blocks=blocks,
        widths=widths,
        param_dtype=param_dtype,
        mesh=mesh,
        reshard_after_forward=config.reshard_after_forward,
        quantized_gather=config.gather_int8,
        ledger=ledger,
    )
    return _Apart(sharding)
