"""Host memory, disk and device made ready for one rank's optimizer states."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from offload.device_lane import DeviceLane
from offload.disk.tier import DiskTier
from offload.disk_lane import DiskLane
from offload.engine import Lanes
from offload.host_tensors import HostTensors
from offload.states import SubgroupState, fill_masters, masters_needed
from offload.subgroups import Subgroup
from offload.weights import Weights


@dataclass(frozen=True, kw_only=True)
class TierOptions:
    """How states are kept."""

    disk: DiskTier | None = None
    """Where the disk's share goes; stays open, its owner closes it."""

    buffers: int = 3
    """Staging buffers of one subgroup each, per lane."""

    pin: bool = True
    """Whether host memory that a device copies from is pinned."""

    overlap: bool = True
    """Without it every transfer is waited for at once: slower, the same bits."""


def build_lanes(
    weights: Weights,
    subgroups: Sequence[Subgroup],
    *,
    on_disk: Sequence[bool],
    memory: HostTensors,
    options: TierOptions,
) -> Lanes:
    """Allocate and initialise all states, one subgroup at a time, so none exists twice.

    Raises:
        PinningRefused: The host does not lock that much memory.
        DiskFailure: The disk cannot be written.
        RuntimeError: The disk tier is too small.
    """
    device = None
    if weights.device.type == "cuda":
        largest = max((s.size for s in subgroups), default=0)
        device = DeviceLane(
            weights.device, largest=largest, buffers=options.buffers, overlap=options.overlap
        )

    def keeps_master(subgroup: Subgroup) -> bool:
        return masters_needed(subgroup, weights)

    host = {}
    for subgroup, stored in zip(subgroups, on_disk, strict=True):
        if not stored:
            host[subgroup.index] = _in_memory(subgroup, memory, master=keeps_master(subgroup))
            fill_masters(subgroup, weights, host[subgroup.index])
    lane = None
    if options.disk is not None:
        lane = DiskLane(
            options.disk,
            [s for s, stored in zip(subgroups, on_disk, strict=True) if stored],
            with_master=keeps_master,
            buffers=options.buffers,
            overlap=options.overlap,
        )
        for subgroup in lane.subgroups:
            lane.replace(subgroup, partial(fill_masters, subgroup, weights))
    return Lanes(host=host, disk=lane, device=device)


def _in_memory(subgroup: Subgroup, memory: HostTensors, *, master: bool) -> SubgroupState:
    return SubgroupState(
        exp_avg=memory.zeros(subgroup.size),
        exp_avg_sq=memory.zeros(subgroup.size),
        master=memory.zeros(subgroup.size) if master else None,
    )
