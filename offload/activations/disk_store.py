"""Activations on disk: bytes pass through a few page-aligned staging buffers to a disk tier.

Threads copy a piece into their own buffer and write it, so that neither the copy nor the disk holds
up the training thread; a piece of a device tensor crosses on that thread's stream.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from queue import SimpleQueue

import torch
from torch import Tensor

from offload.activations.stores import Pending, allocate_or_explain, page_aligned_on
from offload.disk.extents import PAGE_BYTES, Extent
from offload.disk.files import DiskFailure, round_up_to_pages
from offload.disk.tier import DiskTier
from offload.host_tensors import HostTensors

PIECE_BYTES = 8 * 1024 * 1024


class DiskStore:
    """An activation tier on a `DiskTier`, whose owner closes it unless `closes_tier` says so.

    store = DiskStore(DiskTier(["/nvme0"], capacity_bytes=64 << 30))
    """

    def __init__(
        self,
        tier: DiskTier,
        *,
        buffers: int = 4,
        piece_bytes: int = PIECE_BYTES,
        timeout_s: float = 120.0,
        pin: bool = False,
        closes_tier: bool = False,
    ) -> None:
        if buffers < 1 or piece_bytes < 1:
            raise ValueError(
                f"buffers and piece_bytes must be positive, got {buffers}, {piece_bytes}"
            )
        self._tier = tier
        self._closes_tier = closes_tier
        self._timeout_s = timeout_s
        self._piece_bytes = round_up_to_pages(piece_bytes)
        self._memory = HostTensors(pin=pin)
        self._free: SimpleQueue[Tensor] = SimpleQueue()
        for _ in range(buffers):
            self._free.put(self._memory.zeros(self._piece_bytes // 4).view(torch.uint8))
        self._buffers = buffers
        self._threads = ThreadPoolExecutor(buffers, "stage")
        self._streams: dict[tuple[int, torch.device], torch.cuda.Stream] = {}

    @property
    def staging_bytes(self) -> int:
        """The buffers."""
        return self._buffers * self._piece_bytes

    @property
    def free_bytes(self) -> int:
        """Bytes in no place."""
        return self._tier.free_bytes

    def allocate(self, num_bytes: int) -> Extent:
        """A place for `num_bytes`."""
        return allocate_or_explain(self._tier, num_bytes, "the disk tier for activations")

    def release(self, place: Extent) -> None:
        """Give a place back."""
        self._tier.release(place)

    def put(self, place: Extent, source_N: Tensor) -> Pending:
        """Start to write."""
        return self._start("write", place, source_N, self._write)

    def fetch(self, place: Extent, target_N: Tensor) -> Pending:
        """Start to read; straight into `target_N` where it is on the CPU and starts at a page."""
        if target_N.device.type == "cpu" and _is_on_pages(target_N):
            return self._tier.read(place, [target_N])
        return self._start("read", place, target_N, self._read)

    def empty(self, num_bytes: int, device: torch.device) -> Tensor:
        """Memory that reads go straight into, where there is such."""
        return page_aligned_on(num_bytes, device)

    def close(self) -> None:
        """Wait for the threads and give the staging buffers back."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._memory.close()
        if self._closes_tier:
            self._tier.close()

    def _start(
        self,
        verb: str,
        place: Extent,
        bytes_N: Tensor,
        move: Callable[[Extent, Tensor, torch.cuda.Event | None], None],
    ) -> Pending:
        ready = None
        if bytes_N.device.type == "cuda":
            ready = torch.cuda.Event()
            ready.record(torch.cuda.current_stream(bytes_N.device))
        jobs = []
        for begin in range(0, bytes_N.numel(), self._piece_bytes):
            piece_N = bytes_N[begin : begin + self._piece_bytes]
            part = Extent(place.start + begin, round_up_to_pages(piece_N.numel()))
            jobs.append(self._threads.submit(move, part, piece_N, ready))
        what = f"{verb} of {bytes_N.numel()} bytes of activations"
        return StagedTransfer(jobs, self._timeout_s, what)

    def _write(self, part: Extent, piece_N: Tensor, ready: torch.cuda.Event | None) -> None:
        buffer = self._free.get()
        try:
            self._copy(buffer[: piece_N.numel()], piece_N, ready)
            self._tier.write(part, [buffer[: part.length]]).wait()
        finally:
            self._free.put(buffer)

    def _read(self, part: Extent, piece_N: Tensor, ready: torch.cuda.Event | None) -> None:
        buffer = self._free.get()
        try:
            self._tier.read(part, [buffer[: part.length]]).wait()
            self._copy(piece_N, buffer[: piece_N.numel()], ready)
        finally:
            self._free.put(buffer)

    def _copy(self, target_N: Tensor, source_N: Tensor, ready: torch.cuda.Event | None) -> None:
        if ready is None:
            target_N.copy_(source_N)
            return
        device = target_N.device if target_N.device.type == "cuda" else source_N.device
        stream = self._stream(device)
        stream.wait_event(ready)
        with torch.cuda.stream(stream):
            target_N.copy_(source_N, non_blocking=True)
        stream.synchronize()

    def _stream(self, device: torch.device) -> torch.cuda.Stream:
        """This thread's own, made once: new streams would each keep a pool of device memory."""
        key = threading.get_ident(), device
        if key not in self._streams:
            self._streams[key] = torch.cuda.Stream(device)
        return self._streams[key]


def _is_on_pages(bytes_N: Tensor) -> bool:
    """Whether direct I/O can take it as it is."""
    return bytes_N.data_ptr() % PAGE_BYTES == 0 and bytes_N.nbytes % PAGE_BYTES == 0


class StagedTransfer:
    """Pieces on their way through staging buffers."""

    def __init__(self, jobs: Sequence[Future[None]], timeout_s: float, what: str) -> None:
        self._jobs = jobs
        self._timeout_s = timeout_s
        self._what = what

    @property
    def done(self) -> bool:
        """Whether `wait` returns, or raises, at once."""
        return all(job.done() for job in self._jobs)

    def wait(self) -> None:
        """Return when all pieces have arrived; raises DiskFailure."""
        _, late = wait(self._jobs, timeout=self._timeout_s)
        if late:
            raise DiskFailure(
                f"no answer to a {self._what} for {self._timeout_s:g} s; the disk is slow or gone: "
                "look at it, or raise disk_timeout_s"
            )
        for job in self._jobs:
            job.result()
