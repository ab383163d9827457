"""A file in shared memory that one snapshot after another is written to."""

import mmap
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.keeping.header import PAGE_BYTES, Header, aligned, torn

_SPARE_BYTES = PAGE_BYTES
"""Room for a description to grow: counts in it get more digits."""


@dataclass(frozen=True, kw_only=True)
class Owner:
    """Whose shares a process writes."""

    run: str
    """32 hexadecimal digits."""

    generation: int
    rank: int
    ranks: int


class Slot:
    """A share that is written again and again.

    Its memory is taken when it is made, so that a full host refuses then and not in some step; it
    grows where more comes than was foreseen.
    """

    def __init__(
        self, path: Path, owner: Owner, *, description_bytes: int, payload_bytes: int
    ) -> None:
        """Raises OSError where there is no room."""
        self.owner = owner
        self._path = path
        self._sequence = 0
        self.payload: Tensor = torch.empty(0, dtype=torch.uint8)
        """The payload's bytes; writing to them needs `begin` before."""

        self.words: NDArray[np.uint64] = np.empty(0, dtype=np.uint64)
        """The same memory."""

        self._lay_out(description_bytes, payload_bytes, os.O_CREAT | os.O_EXCL)

    def fit(self, *, description_bytes: int, payload_bytes: int) -> bool:
        """Make the file larger if what comes does not fit; whether the payload lies elsewhere now.

        Called after `begin`. Raises OSError where there is no room.
        """
        room = self._payload_begin - PAGE_BYTES
        if description_bytes <= room and payload_bytes <= self.payload.numel():
            return False
        self._lay_out(max(description_bytes, room), max(payload_bytes, self.payload.numel()), 0)
        return True

    def _lay_out(self, description_bytes: int, payload_bytes: int, flags: int) -> None:
        self._payload_begin = PAGE_BYTES + aligned(description_bytes + _SPARE_BYTES, PAGE_BYTES)
        self._map = _mapped(self._path, self._payload_begin + payload_bytes, flags)
        if payload_bytes:
            view = memoryview(self._map)[self._payload_begin :]
            self.payload = torch.frombuffer(view, dtype=torch.uint8)
            self.words = np.frombuffer(view, dtype=np.uint64)

    def begin(self) -> None:
        """Say that the content is no more what the header says."""
        mark = torn(self._sequence)
        self._map[: len(mark)] = mark

    def finish(
        self, step: int, description: bytes, checksum: int, payload_bytes: int | None = None
    ) -> None:
        """Say that the payload is whole, of which the first `payload_bytes` count, or all. Raises
        ValueError where the description is too long."""
        room = self._payload_begin - PAGE_BYTES
        if len(description) > room:
            raise ValueError(
                f"the description of step {step} has {len(description)} bytes, and its share has "
                f"room for {room}; describe a run alike in every step"
            )
        self._map[PAGE_BYTES : PAGE_BYTES + len(description)] = description
        self._sequence += 2
        header = Header(
            sequence=self._sequence,
            run=self.owner.run,
            generation=self.owner.generation,
            step=step,
            rank=self.owner.rank,
            ranks=self.owner.ranks,
            description_bytes=len(description),
            description_crc32=zlib.crc32(description),
            payload_begin=self._payload_begin,
            payload_bytes=self.payload.numel() if payload_bytes is None else payload_bytes,
            checksum=checksum,
        )
        packed = header.packed()
        self._map[: len(packed)] = packed


def slot_bytes(*, description_bytes: int, payload_bytes: int) -> int:
    """Memory that one slot takes."""
    described = aligned(description_bytes + _SPARE_BYTES, PAGE_BYTES)
    return aligned(PAGE_BYTES + described + payload_bytes, PAGE_BYTES)


def _mapped(path: Path, num_bytes: int, flags: int) -> mmap.mmap:
    descriptor = os.open(path, os.O_RDWR | flags, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, num_bytes)
        # Present from the start: page faults would be paid for within the first snapshots.
        return mmap.mmap(descriptor, num_bytes, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
    except OSError:
        if flags:
            path.unlink()
        raise
    finally:
        os.close(descriptor)
