"""`parallelize`: the one ordered application of a layout to a model."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from comms.buckets import GradientBuckets
from comms.ledger import Ledger
from parallel.config import ParallelConfig
from parallel.gradients import Gradients
from parallel.shard import ShardedGradients, fsdp_modules, shard_parameters


def parallelize(
    model: nn.Module,
    *,
    blocks: Sequence[nn.Module],
    mesh: DeviceMesh,
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
    if mesh["shard"].size() > 1 or param_dtype != torch.float32:
        shard_parameters(
            model,
            blocks=blocks,
            mesh=mesh,
            param_dtype=param_dtype,
            reshard_after_forward=config.reshard_after_forward,
            ledger=ledger,
        )
    return model


def gradients_of(
    model: nn.Module, *, mesh: DeviceMesh, config: ParallelConfig, ledger: Ledger
) -> Gradients:
    """How gradients of a parallelized model are summed. Its parameters must have storage."""
    if fsdp_modules(model):
        return ShardedGradients(model)
    replicas = mesh["replica"].size()
    return GradientBuckets(
        [p for p in model.parameters() if p.requires_grad],
        group=mesh.get_group("replica") if replicas > 1 else None,
        bucket_bytes=config.bucket_bytes,
        ledger=ledger,
    )
