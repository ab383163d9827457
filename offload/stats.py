"""What an optimizer update moved, waited for, and showed of the rates."""

from collections.abc import Sequence
from dataclasses import dataclass

from offload.disk.tier import DiskTier
from offload.engine import Lanes
from offload.schedule import STATE_BYTES, Place, Rates
from offload.subgroups import Subgroup

DISK_BOUND = 0.1
"""Share of an update spent waiting for the disk from which its time shows the disk's rate."""


@dataclass(frozen=True, kw_only=True)
class UpdateStats:
    """Of the last update, on this rank."""

    total_s: float = 0.0
    """Wall time of the call. On CUDA the device may still be copying states back."""

    host_s: float = 0.0
    """Arithmetic on the host."""

    stall_s: float = 0.0
    """Waiting for the disk with nothing to compute."""

    fetched_bytes: int = 0
    """To the device: states that it updates, weights that the host updated."""

    flushed_bytes: int = 0
    """From the device: states."""

    disk_read_bytes: int = 0
    disk_written_bytes: int = 0
    """Since the update before, so that reads ahead and writes behind count."""

    device_subgroups: int = 0
    host_subgroups: int = 0
    disk_subgroups: int = 0


class Meter:
    """Turns counters of the lanes into the figures of one update."""

    def __init__(self, subgroups: Sequence[Subgroup], lanes: Lanes, disk: DiskTier | None) -> None:
        self._sizes = [subgroup.size for subgroup in subgroups]
        self._lanes = lanes
        self._disk = disk
        self._read_bytes, self._written_bytes = self._counters()

    def read(
        self, places: Sequence[Place], *, host_s: float, total_s: float
    ) -> tuple[UpdateStats, Rates]:
        """Figures of the update that just ended, and the rates it showed (zero: nothing shown)."""
        of = {place: 0 for place in ("host", "device", "disk")}
        for size, place in zip(self._sizes, places, strict=True):
            of[place] += size
        lane, device = self._lanes.disk, self._lanes.device
        stall_s = lane.take_stall_s() if lane is not None else 0.0
        read_bytes, written_bytes = self._since_last()
        weights_bytes = 4 * (of["host"] + of["disk"]) if device is not None else 0
        stats = UpdateStats(
            total_s=total_s,
            host_s=host_s,
            stall_s=stall_s,
            fetched_bytes=STATE_BYTES * of["device"] + weights_bytes,
            flushed_bytes=STATE_BYTES * of["device"],
            disk_read_bytes=read_bytes,
            disk_written_bytes=written_bytes,
            device_subgroups=places.count("device"),
            host_subgroups=places.count("host"),
            disk_subgroups=places.count("disk"),
        )
        fetch_per_s, flush_per_s = device.take_rates() if device is not None else (0.0, 0.0)
        disk_bound = total_s > 0.0 and stall_s > DISK_BOUND * total_s
        seen = Rates(
            host_parameters_per_s=(of["host"] + of["disk"]) / host_s if host_s > 0.0 else 0.0,
            fetch_bytes_per_s=fetch_per_s,
            flush_bytes_per_s=flush_per_s,
            disk_bytes_per_s=(read_bytes + written_bytes) / total_s if disk_bound else 0.0,
        )
        return stats, seen

    def _since_last(self) -> tuple[int, int]:
        before = self._read_bytes, self._written_bytes
        self._read_bytes, self._written_bytes = self._counters()
        return self._read_bytes - before[0], self._written_bytes - before[1]

    def _counters(self) -> tuple[int, int]:
        if self._disk is None:
            return 0, 0
        return self._disk.counters.read_bytes, self._disk.counters.written_bytes
