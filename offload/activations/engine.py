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
  graph is gone, by backward, by an exception or dropped.

On CUDA the memory of a storage is reused only after the event of its copy: `wait` orders the
current stream behind it before the last reference goes.
"""

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from offload.activations.amount import Scope
from offload.activations.inbound import Inbound, Targets
from offload.activations.outbound import Outbound
from offload.activations.profile import Profile
from offload.activations.records import (
    Dropped,
    Graveyard,
    Handle,
    Kept,
    Packed,
    Record,
    SwapOptions,
    SwapStats,
    changed_message,
)
from offload.activations.stores import ActivationStore, TierFull
from offload.activations.tensors import (
    VersionProbe,
    View,
    is_plain,
    is_weight,
    storage_bytes,
)


class ActivationSwap:
    """The saved tensors of one rank. Reused for every step; `close` when training ends."""

    def __init__(
        self,
        store: ActivationStore,
        options: SwapOptions | None = None,
        *,
        device: torch.device | None = None,
        targets: Targets | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.options = SwapOptions() if options is None else options
        self._stats = SwapStats()
        self._store = store
        self._out = Outbound(store, self.options, self._stats, clock)
        self._targets = targets
        self._block: int | None = None
        self._back = Inbound(store, self._stats, clock, targets)
        self._lock = threading.RLock()
        self._dropped = Graveyard()
        self._live: dict[int, Record] = {}
        self._by_storage: dict[int, Record] = {}
        self._count = 0
        self._profile = Profile(clock)
        self.cut_off = self.options.cut_off
        cuda = torch.cuda.is_available() if device is None else device.type == "cuda"
        self._device_type = "cuda" if cuda else "cpu"

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Inside, tensors saved for backward may leave; backward itself may run inside or after."""
        with saved_tensors_hooks(self.pack, self.unpack):
            yield

    @contextmanager
    def block(self, index: int) -> Iterator[None]:
        """Inside, saved tensors belong to decoder block `index`."""
        self._block = index if self._targets is None else self._targets.begin_block(index)
        try:
            yield
        finally:
            self._block = None

    @property
    def live_bytes(self) -> int:
        """Bytes of saved storages that some graph may still ask for, wherever they are."""
        self.settle()
        return sum(record.num_bytes for record in self._live.values())

    def take_stats(self) -> SwapStats:
        """Figures since the last call."""
        return self._stats.take()

    def scopes(self) -> list[Scope]:
        """What the last forward saved, storage by storage, with the time since the one before: for
        `first_kept`, whose answer is the `cut_off`. On CUDA profile with a clock that synchronises.
        """
        return self._profile.scopes()

    def pack(
        self,
        tensor: Tensor,
        *,
        stored_bytes: int | None = None,
        fill: Callable[[], None] | None = None,
    ) -> Packed:
        """What to keep in place of a saved tensor. Of a storage that is new, only the first
        `stored_bytes` leave if given, and `fill` recomputes the others.

        Raises:
            DiskFailure: An earlier storage could not be written.
            TierFull: The tier has no room, and the options do not keep what finds none.
        """
        with self._lock:
            self.settle()
            self._profile.forward()
            if not self._moves(tensor):
                return Kept(tensor)
            record = self._known(tensor)
            # What another function recomputes comes back only when all of that function does.
            if record is None or (not record.is_whole and record.fill != fill):
                try:
                    record = self._record(tensor, fill, stored_bytes)
                except TierFull:
                    if not self.options.keep_when_full:
                        raise
                    self._stats.kept_bytes += tensor.untyped_storage().nbytes()
                    return Kept(tensor)
            return Handle(record, View.of(tensor), self._dropped)

    def unpack(self, packed: Packed) -> Tensor:
        """The saved tensor.

        Raises:
            RuntimeError: It was changed in place, or comes back with other bytes.
            DiskFailure: It cannot be read.
        """
        with self._lock:
            self._profile.backward()
            self.settle()
            if isinstance(packed, Kept):
                self._ahead(self._count)
                return packed.tensor()
            record = packed.record
            if record.probe.changed:
                raise RuntimeError(changed_message(packed.view.size, packed.view.dtype))
            tensor = packed.view.on(self.bytes_of(record))
            self._ahead(record.number)
            self._asked(packed)
            return tensor

    def bytes_of(self, record: Record) -> Tensor:
        """All bytes of a record, fetched and recomputed where they are not in memory."""
        self.load(record)
        bytes_N = self._back.arrive(record)
        if record.fill is not None and not record.filled:
            record.fill()
        return bytes_N

    def load(self, record: Record) -> None:
        """Start to bring a record back, if that has not begun."""
        self._back.start(record)

    def arrive(self, record: Record) -> None:
        """Wait for what of a record the tier holds. Raises DiskFailure."""
        self._back.arrive(record)

    def note_recomputed(self, num_bytes: int) -> None:
        """Count bytes that `fill` made."""
        self._stats.recomputed_bytes += num_bytes

    def settle(self) -> None:
        """Let go of what has left and of what nobody will ask for; waits for nothing.

        Raises:
            DiskFailure: Something could not be stored; it is still in memory.
        """
        with self._lock:
            for dropped in self._dropped.take():
                self._drop(dropped)
            self._back.settle()
            self._out.settle()

    def drain(self) -> None:
        """Wait for all transfers that nobody waits for. Raises DiskFailure."""
        with self._lock:
            self.settle()
            self._back.drain()
            self._out.drain()

    def close(self) -> None:
        """Wait for transfers and close the store; graphs that still need its bytes are lost."""
        with self._lock:
            try:
                self.drain()
            finally:
                self._live.clear()
                self._by_storage.clear()
                self._store.close()

    def close_when_unused(self) -> None:
        """Close the store when neither a caller nor a graph holds this object any more."""
        # Saved tensors hold the hooks, and these the swap.
        weakref.finalize(self, self._store.close)

    def _ahead(self, before: int) -> None:
        window_bytes = self.options.prefetch_bytes
        self._back.ahead(reversed(self._live.values()), before=before, window_bytes=window_bytes)

    def _moves(self, tensor: Tensor) -> bool:
        if not is_plain(tensor) or tensor.device.type != self._device_type or is_weight(tensor):
            return False
        num_bytes = tensor.untyped_storage().nbytes()
        if num_bytes == 0:
            return False
        if num_bytes >= self.options.min_bytes:
            behind = self.cut_off is not None and self._profile.position >= self.cut_off
            if self._known(tensor) is not None or not behind:
                return True
            self._profile.note(num_bytes)
        self._stats.kept_bytes += num_bytes
        return False

    def _known(self, tensor: Tensor) -> Record | None:
        """The record of the tensor's storage as it is now."""
        record = self._by_storage.get(tensor.untyped_storage()._cdata)
        return None if record is None or record.probe.changed else record

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
            block=self._block,
        )
        if record.stored_bytes > 0:
            record.place = self._store.allocate(record.stored_bytes)
        self._count += 1
        self._profile.note(record.num_bytes)
        if self._targets is not None:
            self._targets.saved(record)
        self._live[record.number] = record
        self._by_storage[record.storage.cdata] = record
        self._out.start(record)
        return record

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
        if self._targets is not None:
            self._targets.released(record)

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
            self._back.abandon(record)
