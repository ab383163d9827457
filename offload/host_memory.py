"""Whether the states of all ranks of a host fit its memory, decided before any is allocated.

The plan is pure; `read_limits` looks at the host. Guarantees, each asserted in
tests/offload/test_host_memory.py:
- the needs of all ranks of a host are added up, and each limit is held against its own kind;
- the smallest of free memory and control group decides, and the message says which it was;
- what a rank needs is within a few percent of what the optimizer allocates.
"""

import os
import resource
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from offload.disk.extents import PAGE_BYTES

GIB = 1024**3
FLOAT_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class RankNeed:
    """Host memory and disk of one rank."""

    pinned_bytes: int = 0
    """Locked for copies to a device."""

    pageable_bytes: int = 0
    shared_bytes: int = 0
    """In /dev/shm."""

    file_bytes: int = 0
    """In scratch files."""

    cached_bytes: int = 0
    """Page cache of files that direct I/O cannot reach; the kernel gives it back under pressure."""

    @property
    def memory_bytes(self) -> int:
        """What the host must have and cannot take back."""
        return self.pinned_bytes + self.pageable_bytes + self.shared_bytes


@dataclass(frozen=True, kw_only=True)
class HostLimits:
    """What a host has left; None where there is no limit."""

    free_bytes: int
    cgroup_bytes: int | None = None
    locked_bytes: int | None = None
    """`ulimit -l` of one process. CUDA's registered memory is outside it; what is locked with mlock
    or registered with a network card is inside."""

    address_bytes: int | None = None
    """`ulimit -v` of one process."""

    shared_bytes: int | None = None
    disk_bytes: int | None = None


def optimizer_need(
    parameters: int,
    *,
    weight_bytes: int,
    device: bool,
    disk_share: float = 0.0,
    subgroup_parameters: int = 25_000_000,
    buffers: int = 3,
) -> RankNeed:
    """Need of InterleavedAdamW over `parameters` of this rank, gradients included, weights not.

    `weight_bytes` is the size of one weight; fp32 weights on the CPU are their own masters.
    """
    copies = 2 if weight_bytes == FLOAT_BYTES and not device else 3
    state_bytes = copies * FLOAT_BYTES * parameters
    file_bytes = int(disk_share * state_bytes)
    subgroup = min(subgroup_parameters, parameters)
    staging_bytes = 0
    if file_bytes:
        # The last one keeps old weights until the update is through.
        staging_bytes = (buffers * copies + 1) * FLOAT_BYTES * subgroup
    in_memory_bytes = state_bytes - file_bytes
    gradient_bytes = FLOAT_BYTES * parameters
    return RankNeed(
        pinned_bytes=in_memory_bytes + gradient_bytes if device else 0,
        pageable_bytes=staging_bytes + (0 if device else in_memory_bytes + gradient_bytes),
        file_bytes=file_bytes,
    )


def find_problems(
    needs: Sequence[RankNeed],
    limits: HostLimits,
    *,
    fraction: float = 0.9,
    locks_count: bool = False,
) -> list[str]:
    """Why the ranks of one host do not fit, a sentence with a remedy each; empty if they do.

    `fraction` of what is free may be used. `locks_count` says that pinning goes through mlock.
    """
    found = []
    memory_bytes = sum(need.memory_bytes for need in needs)
    has_bytes, which = limits.free_bytes, "are free"
    if limits.cgroup_bytes is not None and limits.cgroup_bytes < has_bytes:
        has_bytes, which = limits.cgroup_bytes, "are left to its control group"
    if memory_bytes > fraction * has_bytes:
        found.append(
            f"{len(needs)} ranks need {_gib(memory_bytes)} of host memory, {_gib(has_bytes)} "
            f"{which} and {fraction:.0%} of it may be used; put a larger offload.disk_share on "
            "disk, shard over more hosts, or raise the limit"
        )
    found += _beyond(sum(n.shared_bytes for n in needs), limits.shared_bytes, "/dev/shm")
    found += _beyond(sum(n.file_bytes for n in needs), limits.disk_bytes, "offload.disk")
    largest = max((need.memory_bytes for need in needs), default=0)
    found += _beyond(largest, limits.address_bytes, "one process (ulimit -v)")
    if locks_count:
        pinned = max((need.pinned_bytes for need in needs), default=0)
        found += _beyond(pinned, limits.locked_bytes, "locked memory (ulimit -l)")
    return found


def read_limits(
    *,
    disks: Sequence[str | Path] = (),
    proc: Path = Path("/proc"),
    cgroups: Path = Path("/sys/fs/cgroup"),
) -> HostLimits:
    """What this host and this process's limits leave right now."""
    shared = Path("/dev/shm")
    return HostLimits(
        free_bytes=_available_bytes(proc / "meminfo"),
        cgroup_bytes=_cgroup_bytes(proc / "self/cgroup", cgroups),
        locked_bytes=_ulimit(resource.RLIMIT_MEMLOCK),
        address_bytes=_ulimit(resource.RLIMIT_AS),
        shared_bytes=_room_bytes([shared]) if shared.is_dir() else None,
        disk_bytes=_room_bytes([Path(disk) for disk in disks]) if disks else None,
    )


def _beyond(need_bytes: int, has_bytes: int | None, what: str) -> list[str]:
    if has_bytes is None or need_bytes <= has_bytes:
        return []
    return [f"{_gib(need_bytes)} are needed in {what}, which has {_gib(has_bytes)}; raise it"]


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.3g} GiB"


def _available_bytes(meminfo: Path) -> int:
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


def _cgroup_bytes(membership: Path, cgroups: Path) -> int | None:
    """The least that any control group above this process leaves; cache that can go is free."""
    found = []
    for line in membership.read_text().splitlines() if membership.exists() else []:
        _, controllers, name = line.split(":", 2)
        if controllers == "":
            found += [_left_v2(folder) for folder in _upwards(cgroups, name)]
        elif "memory" in controllers.split(","):
            found += [_left_v1(folder) for folder in _upwards(cgroups / "memory", name)]
    return min((left for left in found if left is not None), default=None)


def _upwards(root: Path, name: str) -> list[Path]:
    folder = root / name.strip("/")
    return [folder, *(parent for parent in folder.parents if parent.is_relative_to(root))]


def _left_v2(folder: Path) -> int | None:
    limit = folder / "memory.max"
    if not limit.exists() or limit.read_text().strip() == "max":
        return None
    used_bytes = int((folder / "memory.current").read_text())
    return int(limit.read_text()) - used_bytes + _inactive_bytes(folder)


def _left_v1(folder: Path) -> int | None:
    limit = folder / "memory.limit_in_bytes"
    if not limit.exists():
        return None
    used_bytes = int((folder / "memory.usage_in_bytes").read_text())
    return int(limit.read_text()) - used_bytes + _inactive_bytes(folder)


def _inactive_bytes(folder: Path) -> int:
    statistics = folder / "memory.stat"
    lines = statistics.read_text().splitlines() if statistics.exists() else []
    return int(dict(line.split() for line in lines).get("inactive_file", 0))


def _ulimit(kind: int) -> int | None:
    soft, _ = resource.getrlimit(kind)
    return None if soft == resource.RLIM_INFINITY else soft


def _room_bytes(folders: Sequence[Path]) -> int:
    """Free bytes of the file systems below `folders`, each counted once."""
    found: dict[int, int] = {}
    for folder in folders:
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        statistics = os.statvfs(existing)
        found[existing.stat().st_dev] = statistics.f_bavail * statistics.f_frsize
    return sum(found.values()) // PAGE_BYTES * PAGE_BYTES
