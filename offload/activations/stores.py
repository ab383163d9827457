"""Where swapped bytes wait: host memory or disk, behind one interface.

Guarantees, each asserted in tests/offload/activations/test_stores.py:
- what was put is what is fetched, whatever the size, on either tier;
- a failed or late transfer raises in `wait` and says what to do;
- a place that was released is used again, and a full tier says how much more it needs.
"""

from typing import Protocol

import torch
from torch import Tensor

from offload.disk.extents import Extent, Extents
from offload.disk.files import round_up_to_pages
from offload.disk.tier import page_aligned
from offload.host_tensors import HostTensors


class Pending(Protocol):
    """A transfer under way."""

    @property
    def done(self) -> bool:
        """Whether the bytes have arrived, or the transfer failed."""

    def wait(self) -> None:
        """After it, work on the current stream may use the bytes and overwrite their source.

        Raises DiskFailure where a disk refused, failed or did not answer.
        """


class ActivationStore(Protocol):
    """A tier for activations. Methods are called by one thread at a time."""

    @property
    def staging_bytes(self) -> int:
        """Host memory that transfers pass through."""

    def allocate(self, num_bytes: int) -> Extent:
        """A place for `num_bytes`. Raises TierFull where there is no room."""

    def release(self, place: Extent) -> None:
        """Give a place back; no transfer of it is under way."""

    def put(self, place: Extent, source_N: Tensor) -> Pending:
        """Start to store flat uint8 bytes. The source must live until the transfer is done."""

    def fetch(self, place: Extent, target_N: Tensor) -> Pending:
        """Start to fill flat uint8 bytes, no more than were put."""

    def empty(self, num_bytes: int, device: torch.device) -> Tensor:
        """Flat uint8 memory on `device` that `fetch` can fill."""

    def close(self) -> None:
        """Wait for transfers and give the tier's memory back."""


class Done:
    """A transfer that was finished when it began."""

    @property
    def done(self) -> bool:
        """Always."""
        return True

    def wait(self) -> None:
        """Return at once."""


class DeviceCopy:
    """A copy on a stream of its own; ownership passes through an event."""

    def __init__(self, copied: torch.cuda.Event) -> None:
        self._copied = copied

    @property
    def done(self) -> bool:
        """Whether the device has finished it."""
        return self._copied.query()

    def wait(self) -> None:
        """Make the current stream wait; the host goes on."""
        torch.cuda.current_stream().wait_event(self._copied)


class HostStore:
    """Host memory in one piece, allocated to the page and pinned if asked for.

        store = HostStore(8 << 30, pin=True)

    Without a device it copies within memory, which saves none, and serves to check a program.
    """

    def __init__(self, capacity_bytes: int, *, pin: bool) -> None:
        self._memory = HostTensors(pin=pin)
        size_bytes = round_up_to_pages(capacity_bytes)
        self._slab_N = self._memory.zeros(size_bytes // 4).view(torch.uint8)
        self._extents = Extents(size_bytes)
        self._streams: dict[torch.device, tuple[torch.cuda.Stream, torch.cuda.Stream]] = {}

    @property
    def staging_bytes(self) -> int:
        """None: copies are direct."""
        return 0

    @property
    def free_bytes(self) -> int:
        """Bytes in no place."""
        return self._extents.free_bytes

    def allocate(self, num_bytes: int) -> Extent:
        """A place for `num_bytes`."""
        return allocate_or_explain(self._extents, num_bytes, "host memory for activations")

    def release(self, place: Extent) -> None:
        """Give a place back."""
        self._extents.release(place)

    def put(self, place: Extent, source_N: Tensor) -> Pending:
        """Copy out of the device on the outgoing stream, or within memory at once."""
        target_N = self._slab_N[place.start : place.start + source_N.numel()]
        return self._copy(target_N, source_N, source_N.device, way=0)

    def fetch(self, place: Extent, target_N: Tensor) -> Pending:
        """Copy into the device on the incoming stream, or within memory at once."""
        source_N = self._slab_N[place.start : place.start + target_N.numel()]
        return self._copy(target_N, source_N, target_N.device, way=1)

    def empty(self, num_bytes: int, device: torch.device) -> Tensor:
        """Memory of the caching allocator."""
        return torch.empty(num_bytes, dtype=torch.uint8, device=device)

    def close(self) -> None:
        """Wait for copies and unpin."""
        for streams in self._streams.values():
            for stream in streams:
                stream.synchronize()
        self._memory.close()

    def _copy(self, target_N: Tensor, source_N: Tensor, device: torch.device, way: int) -> Pending:
        if device.type != "cuda":
            target_N.copy_(source_N)
            return Done()
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device), torch.cuda.Stream(device)
        stream = self._streams[device][way]
        # The source's last writer, and the target's last reader, are on the current stream.
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            target_N.copy_(source_N, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record(stream)
        return DeviceCopy(copied)


class TierFull(RuntimeError):
    """A tier has no room for a tensor."""


class Space(Protocol):
    """Something that hands out places."""

    @property
    def free_bytes(self) -> int:
        """Bytes in no place."""

    def allocate(self, num_bytes: int) -> Extent:
        """A place for whole pages in one piece. Raises RuntimeError where there is none."""


def allocate_or_explain(space: Space, num_bytes: int, what: str) -> Extent:
    """A whole number of pages from `space`; the error names the tier and the key to raise."""
    size_bytes = round_up_to_pages(num_bytes)
    try:
        return space.allocate(size_bytes)
    except RuntimeError as error:
        raise TierFull(
            f"no room for {size_bytes} bytes in {what}: {space.free_bytes} are free; "
            "give it more capacity_bytes, or swap less: a smaller alpha, a larger min_bytes"
        ) from error


def page_aligned_on(num_bytes: int, device: torch.device) -> Tensor:
    """Flat uint8 memory; on the CPU it starts at a page and has room to the end of the last."""
    if device.type == "cuda":
        return torch.empty(num_bytes, dtype=torch.uint8, device=device)
    return page_aligned(num_bytes)
