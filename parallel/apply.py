"""`parallelize`: the one ordered application of a layout to a model."""

from collections.abc import Sequence

import torch
from torch import nn

from comms.buckets import GradientBuckets
from comms.ledger import Ledger
from parallel.config import ParallelConfig
from parallel.gradients import Gradients
from parallel.mesh import Meshes
from parallel.shard import ShardedGradients, fsdp_modules, shard_parameters


def parallelize(
    model: nn.Module,
    *,
    blocks: Sequence[nn.Module],
    experts: Sequence[nn.Module],
    meshes: Meshes,
    config: ParallelConfig,
    param_dtype: torch.dtype,
    compile_blocks: bool,
    ledger: Ledger,
) -> nn.Module:
    """Apply, in this order: compilation, sharding. All ranks call it; the model may be on meta.

    Parameters that are neither sharded nor computed in another dtype are left alone: replicas
    then exchange gradients through `GradientBuckets`, which moves fewer bytes than FSDP2.
    """
    if compile_blocks:
        for block in blocks:
            block.compile()  # before sharding, so that gathers stay outside the graph
    layout = meshes.layout
    if layout.shard > 1 or layout.tp > 1 or param_dtype != torch.float32:
        shard_parameters(
            model,
            blocks=blocks,
            experts=experts,
            meshes=meshes,
            param_dtype=param_dtype,
            reshard_after_forward=config.reshard_after_forward,
            ledger=ledger,
        )
    return model


def gradients_of(
    model: nn.Module, *, meshes: Meshes, config: ParallelConfig, ledger: Ledger
) -> Gradients:
    """How gradients of a parallelized model are summed. Its parameters must have storage."""
    layout = meshes.layout
    if fsdp_modules(model):
        return ShardedGradients(model, ranks=layout.world_size // layout.pp)
    return GradientBuckets(
        [p for p in model.parameters() if p.requires_grad],
        group=meshes.group("replica") if layout.replica > 1 else None,
        bucket_bytes=config.bucket_bytes,
        ledger=ledger,
    )
