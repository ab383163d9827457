"""Named axes over process groups."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from parallel.layout import Layout


@dataclass(frozen=True, kw_only=True)
class Meshes:
    """The ranks of this rank's island, cut for dense parameters and for experts."""

    layout: Layout
    dense: DeviceMesh
    """Axes (pp, replica, shard, tp)."""

    lines: tuple[tuple[int, ...], ...]
    """The ranks of each island from fast links to slow, for states of different widths."""

    experts: DeviceMesh
    """Axes (pp, replica, expert_shard, ep, tp): `shard` is expert_shard × ep."""

    def group(self, axis: str) -> ProcessGroup:
        """This rank's communicator of one axis."""
        mesh = self.experts if axis in ("expert_shard", "ep") else self.dense
        return mesh.get_group(axis)


def build_mesh(
    layout: Layout, device_type: str, lines: Sequence[Sequence[int]] | None = None
) -> Meshes:
    """The meshes of a layout, their communicators made at once. All ranks call it after joining.
    `lines` name each island's ranks from fast links to slow; left out, neighbours are close.

    Communicators are made here, while memory is free, and not at the first collective.
    """
    sizes = (layout.pp, layout.replica, layout.shard, layout.tp)
    names = ("pp", "replica", "shard", "tp")
    if layout.island == 1:
        root = init_device_mesh(device_type, sizes, mesh_dim_names=names)
    else:
        root = init_device_mesh(
            device_type, (layout.island, *sizes), mesh_dim_names=("island", *names)
        )
    near = tuple(map(tuple, layout.islands() if lines is None else lines))
    # Both from one root: parameters cut over `ep` or `tp` can then be sharded by FSDP2 as well.
    at = root.ndim - 2
    cut = root._unflatten(at, (layout.shard // layout.ep, layout.ep), ("expert_shard", "ep"))
    if layout.island == 1:
        return Meshes(layout=layout, lines=near, dense=root, experts=cut)
    experts = cut["pp", "replica", "expert_shard", "ep", "tp"]
    return Meshes(layout=layout, lines=near, dense=root[names], experts=experts)
