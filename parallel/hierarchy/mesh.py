"""The mesh on which hierarchical sharding lives."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from parallel.hierarchy.widths import AXES, Widths, rank_grid


def build_hierarchy_mesh(
    widths: Widths, device_type: str, lines: Sequence[Sequence[int]] | None = None
) -> DeviceMesh:
    """This rank's mesh with the axes (replica, weights, gradients, optimizer).

    `lines` are all data-parallel lines, each its ranks from fast links to slow; left out, there is
    one of all ranks. All ranks of the default group call it with the same arguments.
    Raises ValueError where the widths do not divide the ranks of a line.
    """
    lines = [range(dist.get_world_size())] if lines is None else lines
    # The tensor is permuted so that nested Shard placements, which cut from the first axis to the
    # last, leave every optimizer shard inside its rank's own weight shard.
    grid = torch.tensor([rank_grid(widths, line) for line in lines], dtype=torch.int)
    return DeviceMesh(device_type, grid, mesh_dim_names=("line", *AXES))[AXES]


def spread_axes(mesh: DeviceMesh) -> tuple[str, ...]:
    """The axes of more than one rank, at least one. DTensor's first operations on a tensor try out
    all placements on all axes of its mesh, so that every axis less saves seconds."""
    sizes = dict(zip(AXES, mesh.shape, strict=True))
    return tuple(axis for axis in AXES if sizes[axis] > 1) or AXES[1:2]
