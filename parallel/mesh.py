"""Named axes over process groups."""

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from parallel.layout import Layout


def build_mesh(layout: Layout, device_type: str) -> DeviceMesh:
    """The mesh of a layout, axes (replica, shard), its communicators made at once.

    All ranks call it after joining the default group. Communicators are made here, while memory
    is free, and not at the first collective.
    """
    mesh = init_device_mesh(
        device_type, (layout.replica, layout.shard), mesh_dim_names=("replica", "shard")
    )
    return mesh
