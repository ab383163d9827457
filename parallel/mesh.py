"""Named axes over process groups."""

from dataclasses import dataclass

from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from parallel.layout import Layout


@dataclass(frozen=True, kw_only=True)
class Meshes:
    """The same ranks, cut for dense parameters and for experts."""

    layout: Layout
    dense: DeviceMesh
    """Axes (pp, replica, shard, tp)."""

    experts: DeviceMesh
    """Axes (pp, replica, expert_shard, ep, tp): `shard` is expert_shard × ep."""

    def group(self, axis: str) -> ProcessGroup:
        """This rank's communicator of one axis."""
        mesh = self.experts if axis in ("expert_shard", "ep") else self.dense
        return mesh.get_group(axis)


def build_mesh(layout: Layout, device_type: str) -> Meshes:
    """The meshes of a layout, their communicators made at once. All ranks call it after joining.

    Communicators are made here, while memory is free, and not at the first collective.
    """
    dense = init_device_mesh(
        device_type,
        (layout.pp, layout.replica, layout.shard, layout.tp),
        mesh_dim_names=("pp", "replica", "shard", "tp"),
    )
    # Both from one root: parameters cut over `ep` or `tp` can then be sharded by FSDP2 as well.
    experts = dense._unflatten(2, (layout.shard // layout.ep, layout.ep), ("expert_shard", "ep"))
    return Meshes(layout=layout, dense=dense, experts=experts)
