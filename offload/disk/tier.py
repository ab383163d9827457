"""Byte buffers on disk: records in striped scratch files, moved by worker threads.

    tier = DiskTier(["/nvme0", "/nvme1"], capacity_bytes=8 << 30, depth=4)
    record = tier.allocate(buffer.nbytes); tier.write(record, [buffer]).wait()

Guarantees, each asserted in tests/offload/disk/test_tier.py:
- what was written is read back, whatever the number of directories and of buffers;
- a failed request raises in `wait`, names the directory and says what to do;
- a request that outlasts the deadline raises instead of hanging;
- bytes are counted as they are moved, written ones for good;
- nothing is left on disk, neither by `close` nor by a killed process.

The tier is scratch space of one process: what must survive it belongs in a checkpoint.
"""

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from offload.disk.extents import PAGE_BYTES, Extent, Extents, Piece, pieces
from offload.disk.files import DiskFailure, ScratchFile, round_up_to_pages

STRIPE_BYTES = 4 * 1024 * 1024


class Transfer:
    """A read or write under way. The buffers belong to it until it is done."""

    def __init__(self, requests: Sequence[Future[None]], timeout_s: float, what: str) -> None:
        self._requests = requests
        self._timeout_s = timeout_s
        self._what = what

    @property
    def done(self) -> bool:
        """Whether `wait` returns, or raises, at once."""
        return all(request.done() for request in self._requests)

    def wait(self) -> None:
        """Return when all bytes are moved.

        Raises:
            DiskFailure: A request failed, or the disk did not answer in time.
        """
        _, late = wait(self._requests, timeout=self._timeout_s)
        if late:
            raise DiskFailure(
                f"no answer to a {self._what} for {self._timeout_s:g} s; the disk is slow or gone: "
                "look at it, or raise disk_timeout_s"
            )
        for request in self._requests:
            request.result()


@dataclass
class Counters:
    """Bytes moved since the tier was opened. Written ones wear the disk."""

    read_bytes: int = 0
    written_bytes: int = 0


class DiskTier:
    """Records of whole pages, striped over one scratch file per directory."""

    def __init__(
        self,
        directories: Sequence[str | Path],
        *,
        capacity_bytes: int,
        depth: int = 4,
        timeout_s: float = 120.0,
        stripe_bytes: int = STRIPE_BYTES,
    ) -> None:
        if not directories:
            raise ValueError("a disk tier needs at least one directory, got none")
        if depth < 1 or stripe_bytes < PAGE_BYTES or stripe_bytes % PAGE_BYTES:
            raise ValueError(
                f"depth must be positive and stripe_bytes whole pages of {PAGE_BYTES}, "
                f"got {depth} and {stripe_bytes}"
            )
        self.counters = Counters()
        self._counting = threading.Lock()
        self._timeout_s = timeout_s
        self._stripe_bytes = stripe_bytes
        stripes = -(-capacity_bytes // (stripe_bytes * len(directories)))
        self._files = _open_all([Path(d) for d in directories], stripes * stripe_bytes)
        self._extents = Extents(stripes * stripe_bytes * len(directories))
        self._workers = [ThreadPoolExecutor(depth, f"disk-{i}") for i, _ in enumerate(self._files)]

    @property
    def direct(self) -> bool:
        """Whether all directories are reached without the page cache."""
        return all(file.direct for file in self._files)

    @property
    def free_bytes(self) -> int:
        """Bytes that are in no record."""
        return self._extents.free_bytes

    def allocate(self, num_bytes: int) -> Extent:
        """A record for `num_bytes`, rounded up to whole pages; what it holds is undefined."""
        return self._extents.allocate(round_up_to_pages(num_bytes))

    def release(self, record: Extent) -> None:
        """Give the record's bytes back. No transfer of it may be under way."""
        self._extents.release(record)

    def read(self, record: Extent, buffers: Sequence[Tensor]) -> Transfer:
        """Start to fill contiguous CPU `buffers`, one after the other, from the record's start.

        Raises:
            ValueError: A buffer's address or size is no multiple of a page, or all are more than
                the record; `page_aligned` makes buffers that fit.
        """
        return self._start("read", record, buffers)

    def write(self, record: Extent, buffers: Sequence[Tensor]) -> Transfer:
        """Start to write `buffers` to the record's start. Raises as `read` does."""
        return self._start("write", record, buffers)

    def close(self) -> None:
        """Wait for requests under way and free the disk space."""
        for workers in self._workers:
            workers.shutdown(wait=True, cancel_futures=True)
        for file in self._files:
            file.close()

    def _start(
        self, verb: Literal["read", "write"], record: Extent, buffers: Sequence[Tensor]
    ) -> Transfer:
        views = [_view(buffer) for buffer in buffers]
        total_bytes = sum(map(len, views))
        if total_bytes > record.length:
            raise ValueError(f"{total_bytes} bytes do not fit a record of {record.length} bytes")
        part = Extent(record.start, total_bytes)
        requests = [
            self._workers[piece.file].submit(self._move, verb, piece, _cut(views, piece))
            for piece in pieces(part, files=len(self._files), stripe_bytes=self._stripe_bytes)
        ]
        folders = ", ".join(str(file.directory) for file in self._files)
        return Transfer(requests, self._timeout_s, f"{verb} of {total_bytes} bytes under {folders}")

    def _move(self, verb: Literal["read", "write"], piece: Piece, views: list[memoryview]) -> None:
        file = self._files[piece.file]
        if verb == "read":
            file.read(views, piece.file_offset)
        else:
            file.write(views, piece.file_offset)
        with self._counting:
            if verb == "read":
                self.counters.read_bytes += piece.length
            else:
                self.counters.written_bytes += piece.length


def page_aligned(num_bytes: int) -> Tensor:
    """An uninitialised uint8 tensor on the CPU whose address and size are whole pages."""
    size_bytes = round_up_to_pages(num_bytes)
    raw = torch.empty(size_bytes + PAGE_BYTES, dtype=torch.uint8)
    skip_bytes = -raw.data_ptr() % PAGE_BYTES
    return raw[skip_bytes : skip_bytes + size_bytes]


def _open_all(directories: Sequence[Path], capacity_bytes: int) -> list[ScratchFile]:
    files: list[ScratchFile] = []
    try:
        for directory in directories:
            files.append(ScratchFile(directory, capacity_bytes))
    except DiskFailure:
        for file in files:
            file.close()
        raise
    return files


def _view(buffer: Tensor) -> memoryview:
    if buffer.device.type != "cpu" or not buffer.is_contiguous():
        raise ValueError(f"disk buffers are contiguous CPU tensors, got one on {buffer.device}")
    if buffer.data_ptr() % PAGE_BYTES or buffer.nbytes % PAGE_BYTES:
        raise ValueError(
            f"disk buffers start and end at pages of {PAGE_BYTES} bytes, got address "
            f"{buffer.data_ptr():#x} and {buffer.nbytes} bytes; make them with page_aligned"
        )
    return buffer.detach().view(-1).view(torch.uint8).numpy().data


def _cut(views: Sequence[memoryview], piece: Piece) -> list[memoryview]:
    """The parts of `views`, seen as one after the other, that `piece` covers."""
    found: list[memoryview] = []
    begin, end = piece.record_offset, piece.record_offset + piece.length
    at = 0
    for view in views:
        first, last = max(begin, at), min(end, at + len(view))
        if first < last:
            found.append(view[first - at : last - at])
        at += len(view)
    return found
