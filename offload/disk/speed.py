"""How fast directories are, and how many requests they want at once: measured.

Reads and writes of a scratch tier are timed at rising depths; the smallest depth that is nearly as
fast as the best is chosen, because each outstanding request holds a thread.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from offload.disk.tier import STRIPE_BYTES, DiskTier, page_aligned

DEPTHS = (1, 2, 4, 8)
NEARLY = 0.95


@dataclass(frozen=True, kw_only=True)
class DiskSpeed:
    """Rates of all directories together, and the depth per directory they hold at."""

    depth: int
    read_bytes_per_s: float
    write_bytes_per_s: float
    mixed_bytes_per_s: float
    """Both directions together, while as much is read as written."""


def measure_speed(
    directories: Sequence[str | Path],
    *,
    num_bytes: int = 64 * STRIPE_BYTES,
    depths: Sequence[int] = DEPTHS,
    clock: Callable[[], float] = time.perf_counter,
) -> DiskSpeed:
    """Move `num_bytes` in each way at each depth; takes a few seconds on a usual disk.

    Raises:
        DiskFailure: A directory cannot be written, or has not twice `num_bytes` free.
    """
    found = {depth: _at_depth(directories, num_bytes, depth, clock) for depth in depths}
    return found[choose_depth({depth: speed.mixed_bytes_per_s for depth, speed in found.items()})]


def choose_depth(bytes_per_s: Mapping[int, float]) -> int:
    """The smallest depth within a few percent of the fastest."""
    best = max(bytes_per_s.values())
    return min(depth for depth, rate in bytes_per_s.items() if rate >= NEARLY * best)


def _at_depth(
    directories: Sequence[str | Path], num_bytes: int, depth: int, clock: Callable[[], float]
) -> DiskSpeed:
    tier = DiskTier(directories, capacity_bytes=2 * num_bytes, depth=depth)
    try:
        one, other = tier.allocate(num_bytes), tier.allocate(num_bytes)
        out, back = page_aligned(num_bytes).fill_(1), page_aligned(num_bytes).fill_(2)
        # The first write of a preallocated block also updates the file system's records.
        tier.write(one, [out]).wait()
        tier.write(other, [back]).wait()

        def write() -> None:
            tier.write(one, [out]).wait()

        def read() -> None:
            tier.read(other, [back]).wait()

        def both() -> None:
            pending = tier.write(one, [out]), tier.read(other, [back])
            for transfer in pending:
                transfer.wait()

        return DiskSpeed(
            depth=depth,
            write_bytes_per_s=num_bytes / _seconds(write, clock),
            read_bytes_per_s=num_bytes / _seconds(read, clock),
            mixed_bytes_per_s=2 * num_bytes / _seconds(both, clock),
        )
    finally:
        tier.close()


def _seconds(action: Callable[[], None], clock: Callable[[], float]) -> float:
    begin_s = clock()
    action()
    return max(clock() - begin_s, 1e-9)
