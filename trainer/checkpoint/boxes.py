"""Which boxes of a whole tensor a rank holds, and where they lie in its local part.

Guarantees, each asserted in tests/trainer/checkpoint/test_boxes.py:
- the boxes of a rank cover its local part once, and name the elements that are there;
- whatever DTensor can place, strided shards included, is a list of boxes.
"""

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.distributed.tensor.placement_types import _StridedShard


@dataclass(frozen=True)
class Box:
    """A block of a tensor."""

    offsets: tuple[int, ...]
    """First element in the whole tensor."""

    shape: tuple[int, ...]
    local: tuple[int, ...]
    """First element in the part of the tensor that this rank holds."""

    def of(self, local_part: Tensor) -> Tensor:
        """The box as a view of the local part."""
        for dim, (start, size) in enumerate(zip(self.local, self.shape, strict=True)):
            local_part = local_part.narrow(dim, start, size)
        return local_part


def boxes_of(tensor: Tensor) -> list[Box]:
    """What this rank holds of `tensor`; nothing where that has no elements. Sends nothing."""
    origin = (0,) * tensor.ndim
    if not isinstance(tensor, DTensor):
        return [Box(origin, tuple(tensor.shape), origin)] if tensor.numel() else []
    mesh, placements = tensor.device_mesh, tensor.placements
    if all(type(placement) in (Shard, Replicate) for placement in placements):
        shape, offsets = compute_local_shape_and_global_offset(tensor.shape, mesh, placements)
        box = Box(tuple(offsets), tuple(shape), origin)
        return [box] if torch.Size(shape).numel() else []
    runs = [_runs(tensor, dim) for dim in range(tensor.ndim)]
    return [
        Box(
            tuple(run[0] for run in along),
            tuple(run[1] for run in along),
            tuple(run[2] for run in along),
        )
        for along in product(*runs)
    ]


def _runs(tensor: DTensor, dim: int) -> list[tuple[int, int, int]]:
    """Start, length and local start of the stretches of one dim that this rank holds."""
    whole = torch.arange(tensor.shape[dim], device=tensor.device_mesh.device_type)
    along = [_along(placement, dim) for placement in tensor.placements]
    held = distribute_tensor(whole, tensor.device_mesh, along, src_data_rank=None)
    indices = held.to_local().tolist()
    runs: list[tuple[int, int, int]] = []
    for local, index in enumerate(indices):
        if runs and runs[-1][0] + runs[-1][1] == index:
            start, length, first = runs[-1]
            runs[-1] = (start, length + 1, first)
        else:
            runs.append((index, 1, local))
    return runs


def _along(placement: Placement, dim: int) -> Placement:
    """What a placement of the tensor does to the indices of one of its dims."""
    if isinstance(placement, _StridedShard) and placement.dim == dim:
        return _StridedShard(0, split_factor=placement.split_factor)
    if isinstance(placement, Shard) and placement.dim == dim:
        return Shard(0)
    return Replicate()


def overlap(box: Box, offsets: tuple[int, ...], shape: tuple[int, ...]) -> Box | None:
    """The part of `box` that lies in the block at `offsets`; None where they do not meet."""
    starts = tuple(max(a, b) for a, b in zip(box.offsets, offsets, strict=True))
    stops = tuple(
        min(a + n, b + m) for a, n, b, m in zip(box.offsets, box.shape, offsets, shape, strict=True)
    )
    sizes = tuple(stop - start for start, stop in zip(starts, stops, strict=True))
    if any(size <= 0 for size in sizes):
        return None
    local = tuple(
        first + start - a for first, start, a in zip(box.local, starts, box.offsets, strict=True)
    )
    return Box(starts, sizes, local)
