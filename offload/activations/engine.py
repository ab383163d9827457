"""Saved tensors leave memory after forward and are back before backward wants them.

    swap = ActivationSwap(DiskStore(DiskTier(["/nvme0"], capacity_bytes=64 << 30)))
    with swap.saving():
        loss = model(batch)
    loss.backward()

Guarantees, each asserted in tests/offload/activations/test_engine.py:
- gradients are those without it, to the bit;
- a storage is stored once, however many saved tensors are views of it; weights never are;
- a storage that has not left yet is handed back as it is, without a read;
- a storage changed in place after it was saved raises when backward asks for it;
- memory under way is bounded in both directions, and places and memory are given back when the
  graph is gone, whether by backward, by an exception or by being dropped.

On CUDA the memory of a storage is reused only after the event of its copy: `wait` orders the
current stream behind it before the last reference goes.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from offload.activations.amount import Scope
from offload.activations.records import (
    Ahead,
    Dropped,
    Handle,
    Kept,
    Record,
    SwapOptions,
    SwapStats,
    changed_message,
)
from offload.activations.stores import ActivationStore, Done
from offload.activations.tensors import (
    VersionProbe,
    View,
    is_plain,
    is_weight,
    storage_bytes,
)
from offload.disk.files import DiskFailure, round_up_to_pages

Targets = Callable[[Record], Tensor | None]
"""Static memory for a record's return; None where there is none to spare."""


class ActivationSwap:
    """The saved tensors of one rank. Reused for every step; `close` when training ends."""

    def __init__(
        self,
        store: ActivationStore,
        options: SwapOptions = SwapOptions(),  # noqa: B008
        *,
        device: torch.device | None = None,
        targets: Targets | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._store = store
        self._targets = targets
        self._clock = clock
        self.options = options
        cuda = torch.cuda.is_available() if device is None else device.type == "cuda"
        self._device_type = "cuda" if cuda else "cpu"
        self._lock = threading.RLock()
        self._dropped: deque[Dropped] = deque()
        self._live: dict[int, Record] = {}
        self._by_storage: dict[int, Record] = {}
        self._leaving: deque[Record] = deque()
        self._ahead: list[Ahead] = []
        self._count = 0
        self._position = 0
        self._in_backward = False
        self._saved: list[tuple[int, float]] = []
        self._begin_s = clock()
        self.stats = SwapStats()

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Inside, tensors saved for backward may leave; backward itself may run inside or after."""
        with saved_tensors_hooks(self.pack, self.unpack):
            yield

    @property
    def live_bytes(self) -> int:
        """Bytes of saved storages that some graph may still ask for, wherever they are."""
        with self._lock:
            self.settle()
            return sum(record.num_bytes for record in self._live.values())

    def take_stats(self) -> SwapStats:
        """Figures since the last call."""
        with self._lock:
            stats, self.stats = self.stats, SwapStats()
            return stats

    def scopes(self) -> list[Scope]:
        """What the last forward saved, storage by storage, with the time since the one before; for
        `first_kept`. On CUDA give a clock that synchronises while profiling."""
        times = [self._begin_s, *(at for _, at in self._saved)]
        return [
            Scope(saved_bytes=size, forward_s=end - begin)
            for (size, _), begin, end in zip(self._saved, times[:-1], times[1:], strict=True)
        ]

    def pack(self, tensor: Tensor) -> Handle | Kept:
        """What to keep in place of a saved tensor.

        Raises:
            DiskFailure: An earlier storage could not be written.
            RuntimeError: The tier has no room.
        """
        with self._lock:
            self._begin_forward()
            if not self._moves(tensor):
                return Kept(tensor)
            return self._handle(tensor, fill=None, stored_bytes=None)

    def pack_part(
        self, tensor: Tensor, *, stored_bytes: int, fill: Callable[[], None]
    ) -> Handle | Kept:
        """As `pack`, but only the first bytes of the storage leave; `fill` recomputes the rest."""
        with self._lock:
            self._begin_forward()
            if not self._moves(tensor):
                return Kept(tensor)
            return self._handle(tensor, fill=fill, stored_bytes=stored_bytes)

    def unpack(self, packed: Handle | Kept) -> Tensor:
        """The saved tensor.

        Raises:
            RuntimeError: It was changed in place, or comes back with other bytes.
            DiskFailure: It cannot be read.
        """
        if isinstance(packed, Kept):
            return packed.tensor()
        with self._lock:
            self._in_backward = True
            self.settle()
            record = packed.record
            if record.probe.changed:
                raise RuntimeError(changed_message(packed.view.size, packed.view.dtype))
            tensor = packed.view.on(self.bytes_of(record))
            self._asked(packed)
            self._read_ahead(record.number)
            return tensor

    def bytes_of(self, record: Record) -> Tensor:
        """All bytes of a record, fetched and recomputed where they are not in memory."""
        if record.memory_N is not None:
            self.stats.forwarded_bytes += record.num_bytes
            return record.memory_N
        self.load(record)
        self._arrive(record)
        if record.fill is not None and not record.filled:
            record.fill()
        assert record.restored_N is not None
        return record.restored_N

    def load(self, record: Record) -> None:
        """Start to bring a record back, if it is neither in memory nor on its way."""
        if record.memory_N is not None or record.restored_N is not None:
            return
        target_N = self._targets(record) if self._targets is not None else None
        if target_N is None:
            target_N = self._store.empty(record.num_bytes, record.device)
        record.restored_N = target_N
        record.filled = record.stored_bytes >= record.num_bytes
        record.loading = Done()
        if record.place is not None:
            reach = min(round_up_to_pages(record.stored_bytes), target_N.numel())
            record.loading = self._store.fetch(record.place, target_N[:reach])
            self.stats.fetched_bytes += record.stored_bytes
        held = sum(r.num_bytes for r in self._live.values() if r.restored_N is not None)
        self.stats.fetched_peak_bytes = max(self.stats.fetched_peak_bytes, held)

    def settle(self) -> None:
        """Let go of what has left and of what nobody will ask for; never waits."""
        while self._dropped:
            self._drop(self._dropped.popleft())
        for record in [r for r in self._leaving if r.storing is not None and r.storing.done]:
            self._left(record)
        for ahead in [a for a in self._ahead if a.pending.done]:
            self._finish(ahead)

    def drain(self) -> None:
        """Wait until nothing is on its way out. Raises DiskFailure."""
        with self._lock:
            while self._leaving:
                self._left(self._leaving[0])
            self.settle()

    def close(self) -> None:
        """Wait for transfers and close the store. Graphs that still need bytes cannot be used."""
        with self._lock:
            self.settle()
            for record in self._leaving:
                self._ahead.append(Ahead(record.storing or Done(), storage_like(record)))
            self._leaving.clear()
            self._live.clear()
            self._by_storage.clear()
        self._store.close()
        self._ahead.clear()

    def _begin_forward(self) -> None:
        self.settle()
        if self._in_backward:
            self._in_backward = False
            self._position = 0
            self._saved = []
            self._begin_s = self._clock()

    def _moves(self, tensor: Tensor) -> bool:
        if not is_plain(tensor) or tensor.device.type != self._device_type or is_weight(tensor):
            return False
        num_bytes = tensor.untyped_storage().nbytes()
        if num_bytes == 0:
            return False
        small = num_bytes < self.options.min_bytes
        if small or (self._known(tensor) is None and self._cut_off()):
            self.stats.kept_bytes += num_bytes
            return False
        return True

    def _cut_off(self) -> bool:
        return self.options.cut_off is not None and self._position >= self.options.cut_off

    def _known(self, tensor: Tensor) -> Record | None:
        """The record of the tensor's storage as it is now."""
        record = self._by_storage.get(tensor.untyped_storage()._cdata)
        return None if record is None or record.probe.changed else record

    def _handle(
        self, tensor: Tensor, *, fill: Callable[[], None] | None, stored_bytes: int | None
    ) -> Handle:
        record = self._known(tensor)
        if record is None:
            record = self._record(tensor, fill, stored_bytes)
        return Handle(record, View.of(tensor), self._dropped)

    def _record(
        self, tensor: Tensor, fill: Callable[[], None] | None, stored_bytes: int | None
    ) -> Record:
        memory_N = storage_bytes(tensor)
        record = Record(
            number=self._count,
            num_bytes=memory_N.numel(),
            device=tensor.device,
            storage=StorageWeakRef(tensor.untyped_storage()),
            probe=VersionProbe(tensor),
            memory_N=memory_N,
            stored_bytes=memory_N.numel() if stored_bytes is None else stored_bytes,
            fill=fill,
        )
        if record.stored_bytes > 0:
            record.place = self._store.allocate(record.stored_bytes)
        self._count += 1
        self._position += 1
        self._saved.append((record.num_bytes, self._clock()))
        self._live[record.number] = record
        self._by_storage[record.storage.cdata] = record
        self._leave(record, memory_N)
        return record

    def _leave(self, record: Record, memory_N: Tensor) -> None:
        if record.place is None:
            record.storing = Done()
        else:
            leaving_N = memory_N[: record.stored_bytes]
            if self.options.checksums:
                record.checksum = checksum(leaving_N)
            record.storing = self._store.put(record.place, leaving_N)
            self.stats.stored_bytes += record.stored_bytes
        self._leaving.append(record)
        in_flight = sum(r.num_bytes for r in self._leaving)
        begin_s = self._clock()
        while in_flight > self.options.max_in_flight_bytes and len(self._leaving) > 1:
            in_flight -= self._leaving[0].num_bytes
            self._left(self._leaving[0])
        self.stats.stall_out_s += self._clock() - begin_s
        self.stats.in_flight_peak_bytes = max(self.stats.in_flight_peak_bytes, in_flight)

    def _left(self, record: Record) -> None:
        """Let a storage go, after its transfer. If that failed it stays where it is."""
        self._leaving.remove(record)
        assert record.storing is not None
        record.storing.wait()
        record.memory_N = None
        if record.handles == 0:
            self._release(record)

    def _arrive(self, record: Record) -> None:
        assert record.loading is not None
        assert record.restored_N is not None
        begin_s = self._clock()
        record.loading.wait()
        self.stats.stall_back_s += self._clock() - begin_s
        if record.checksum is not None and not torch.equal(
            record.checksum, checksum(record.restored_N[: record.stored_bytes])
        ):
            raise RuntimeError(
                f"{record.stored_bytes} bytes of activations came back changed; "
                "the disk or the driver is failing: check them, or swap to another tier"
            )

    def _asked(self, handle: Handle) -> None:
        record = handle.record
        if handle.asked_in != record.round:
            handle.asked_in = record.round
            record.waiting -= 1
        if record.waiting == 0:
            self._rearm(record)

    def _rearm(self, record: Record) -> None:
        """All views were asked for: the next that asks, in a retained graph, fetches anew."""
        record.round += 1
        record.waiting = record.handles
        record.restored_N = None

    def _read_ahead(self, before: int) -> None:
        ahead = 0
        for record in reversed(self._live.values()):
            if record.memory_N is not None:
                continue
            if record.restored_N is not None:
                ahead += record.num_bytes
            elif record.number < before:
                if ahead + record.num_bytes > self.options.prefetch_bytes:
                    return
                ahead += record.num_bytes
                self.load(record)

    def _drop(self, dropped: Dropped) -> None:
        record = dropped.record
        record.handles -= 1
        if dropped.asked_in != record.round:
            record.waiting -= 1
        if record.handles > 0:
            if record.waiting == 0:
                self._rearm(record)
            return
        self._live.pop(record.number, None)
        if self._by_storage.get(record.storage.cdata) is record:
            del self._by_storage[record.storage.cdata]
        if not record.in_flight:
            self._release(record)

    def _release(self, record: Record) -> None:
        places = [] if record.place is None else [record.place]
        record.place = None
        record.fill = None
        if record.restored_N is not None and record.loading is not None:
            self._ahead.append(Ahead(record.loading, record.restored_N, places))
            record.restored_N = None
        else:
            for place in places:
                self._store.release(place)

    def _finish(self, ahead: Ahead) -> None:
        self._ahead.remove(ahead)
        try:
            ahead.pending.wait()
        except DiskFailure:
            # Nobody wants these bytes any more; whoever does want some meets the error himself.
            return
        finally:
            for place in ahead.places:
                self._store.release(place)


def checksum(bytes_N: Tensor) -> Tensor:
    """Sum of the whole 64-bit words; wraps around."""
    return bytes_N[: bytes_N.numel() // 8 * 8].view(torch.int64).sum()


def storage_like(record: Record) -> Tensor:
    """The memory that a transfer of `record` reads."""
    return record.memory_N if record.memory_N is not None else torch.empty(0)
