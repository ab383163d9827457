"""Write values into parameters, plain or sharded, reading only what this rank holds."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

Region = tuple[slice, ...]
"""A box of a tensor: one slice per dim, with start and stop."""


@torch.no_grad()
def fill(parameter: Tensor, read: Callable[[Region], Tensor]) -> None:
    """Set `parameter` to what `read` returns for the box this rank holds.

    For a DTensor every rank calls it; nothing is communicated. Placements whose local part is no
    box (strided shards) read the whole tensor and keep their part.
    """
    if not isinstance(parameter, DTensor):
        parameter.copy_(read(whole(parameter.shape)))
        return
    local = parameter.to_local()
    if not all(type(placement) in (Shard, Replicate) for placement in parameter.placements):
        full = read(whole(parameter.shape)).to(local)
        mesh, placements = parameter.device_mesh, parameter.placements
        local.copy_(distribute_tensor(full, mesh, placements, src_data_rank=None).to_local())
        return
    shape, offset = compute_local_shape_and_global_offset(
        parameter.shape, parameter.device_mesh, parameter.placements
    )
    if local.numel():
        box = tuple(slice(a, a + n) for a, n in zip(offset, shape, strict=True))
        local.copy_(read(box))


def whole(shape: tuple[int, ...]) -> Region:
    """The box that is all of a tensor."""
    return tuple(slice(0, size) for size in shape)
