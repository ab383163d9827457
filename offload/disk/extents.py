"""Where the bytes of a record lie in striped files, and which bytes are free. Pure.

Guarantees, each asserted in tests/offload/disk/test_extents.py:
- two records never share a byte, and released bytes are used again;
- the pieces of a record cover it once, in order, and never cross a stripe;
- consecutive stripes are on different files.
"""

from collections.abc import Iterator
from dataclasses import dataclass

PAGE_BYTES = 4096
"""What offsets, lengths and addresses of direct I/O are multiples of."""


@dataclass(frozen=True, slots=True)
class Extent:
    """A record's place in the striped space."""

    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a record that one request to one file transfers."""

    file: int
    file_offset: int
    record_offset: int
    length: int


def pieces(extent: Extent, *, files: int, stripe_bytes: int) -> Iterator[Piece]:
    """Cut a record at stripe borders; stripe s lies on file s modulo `files`."""
    at = extent.start
    end = extent.start + extent.length
    while at < end:
        stripe, inside = divmod(at, stripe_bytes)
        length = min(stripe_bytes - inside, end - at)
        offset = stripe // files * stripe_bytes + inside
        yield Piece(stripe % files, offset, at - extent.start, length)
        at += length


class Extents:
    """Allocator of whole pages: first fit, neighbours merged on release."""

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._free = [Extent(0, capacity_bytes)]

    @property
    def free_bytes(self) -> int:
        """Bytes that are in no record."""
        return sum(extent.length for extent in self._free)

    def allocate(self, num_bytes: int) -> Extent:
        """A place for `num_bytes`, a multiple of a page."""
        if num_bytes <= 0 or num_bytes % PAGE_BYTES:
            raise ValueError(f"records are whole pages of {PAGE_BYTES} bytes, got {num_bytes}")
        for index, extent in enumerate(self._free):
            if extent.length >= num_bytes:
                rest = Extent(extent.start + num_bytes, extent.length - num_bytes)
                self._free[index : index + 1] = [rest] if rest.length else []
                return Extent(extent.start, num_bytes)
        raise RuntimeError(
            f"no room for {num_bytes} bytes on the disk tier: {self.free_bytes} of "
            f"{self._capacity_bytes} are free; give it more capacity_bytes"
        )

    def release(self, extent: Extent) -> None:
        """Make the record's bytes available again."""
        merged: list[Extent] = []
        for part in sorted([*self._free, extent], key=lambda part: part.start):
            if merged and merged[-1].start + merged[-1].length > part.start:
                raise ValueError(f"{extent} is not a record of this tier, or was released before")
            if merged and merged[-1].start + merged[-1].length == part.start:
                merged[-1] = Extent(merged[-1].start, merged[-1].length + part.length)
            else:
                merged.append(part)
        self._free = merged
