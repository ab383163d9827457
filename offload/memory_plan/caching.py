"""What torch's CUDA caching allocator would reserve for the same requests: a simulation. Pure.

After c10/cuda/CUDACachingAllocator: sizes are rounded up to 512 bytes; small requests share
segments of 2 MiB, larger ones below 10 MiB segments of 20 MiB, others have segments of their own
size rounded up to 2 MiB; a block is the best fit of its pool and is split when enough is left;
free neighbours of a segment are merged; segments are not given back.
"""

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass

from offload.memory_plan.requests import Request

KIB, MIB = 1024, 1024 * 1024
ROUND_BYTES = 512
SMALL_BYTES = MIB
SMALL_SEGMENT_BYTES = 2 * MIB
LARGE_SEGMENT_BYTES = 20 * MIB
MIN_LARGE_BYTES = 10 * MIB
ROUND_LARGE_BYTES = 2 * MIB


@dataclass(frozen=True, kw_only=True)
class AllocatorUse:
    """What a sequence of requests asks of an allocator."""

    reserved_bytes: int
    """Taken from the device, never given back."""

    allocated_bytes: int
    """Most that was in use at one time, rounded as the allocator does."""

    @property
    def fragmentation(self) -> float:
        """Share of what is reserved that was never in use at once."""
        return 1.0 - self.allocated_bytes / self.reserved_bytes if self.reserved_bytes else 0.0


def simulate_caching(requests: Sequence[Request]) -> AllocatorUse:
    """Serve the requests in the order of time; at one time frees come before allocations."""
    events = [(r.end, 0, i) for i, r in enumerate(requests) if r.size_bytes]
    events += [(r.begin, 1, i) for i, r in enumerate(requests) if r.size_bytes]
    pools = {True: _Pool(), False: _Pool()}
    blocks: dict[int, tuple[bool, int, int, int]] = {}
    in_use = most = 0
    for _, is_begin, index in sorted(events):
        if is_begin:
            size = -(-requests[index].size_bytes // ROUND_BYTES) * ROUND_BYTES
            small = size <= SMALL_BYTES
            blocks[index] = (small, *pools[small].take(size, small=small))
            in_use += blocks[index][3]
            most = max(most, in_use)
        else:
            small, segment, start, size = blocks.pop(index)
            pools[small].give(segment, start, size)
            in_use -= size
    reserved = sum(pool.reserved_bytes for pool in pools.values())
    return AllocatorUse(reserved_bytes=reserved, allocated_bytes=most)


class _Pool:
    """Free blocks as (size, segment, start), smallest first."""

    def __init__(self) -> None:
        self.reserved_bytes = 0
        self._segments = 0
        self._free: list[tuple[int, int, int]] = []

    def take(self, size: int, *, small: bool) -> tuple[int, int, int]:
        """Segment, start and size of a block for `size` bytes."""
        fitting = next((block for block in self._free if block[0] >= size), None)
        if fitting is None:
            fitting = self._reserve(_segment_bytes(size))
        else:
            self._free.remove(fitting)
        have, segment, start = fitting
        left = have - size
        if left >= ROUND_BYTES and (small or left > SMALL_BYTES):
            insort(self._free, (left, segment, start + size))
            return segment, start, size
        return segment, start, have

    def give(self, segment: int, start: int, size: int) -> None:
        """Free a block and merge it with its free neighbours."""
        for other in [block for block in self._free if block[1] == segment]:
            other_size, _, other_start = other
            if other_start + other_size == start or start + size == other_start:
                self._free.remove(other)
                start, size = min(start, other_start), size + other_size
        insort(self._free, (size, segment, start))

    def _reserve(self, size: int) -> tuple[int, int, int]:
        self.reserved_bytes += size
        self._segments += 1
        return size, self._segments, 0


def _segment_bytes(size: int) -> int:
    if size <= SMALL_BYTES:
        return SMALL_SEGMENT_BYTES
    if size < MIN_LARGE_BYTES:
        return LARGE_SEGMENT_BYTES
    return -(-size // ROUND_LARGE_BYTES) * ROUND_LARGE_BYTES
