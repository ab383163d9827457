"""Storages on their way back from a tier, ahead of backward."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from offload.activations.records import Record, SwapStats, checksum
from offload.activations.stores import ActivationStore, Done, Pending
from offload.disk.extents import Extent
from offload.disk.files import DiskFailure, round_up_to_pages


class Targets(Protocol):
    """Static memory that records return to."""

    def begin_block(self, block: int) -> int:
        """Forward of `block` begins; a number for what this run of it saves."""

    def saved(self, record: Record) -> None:
        """A record was made."""

    def take(self, record: Record) -> Tensor | None:
        """Memory for a record's return; None where there is none to spare."""

    def released(self, record: Record) -> None:
        """Backward has had all views of a record."""


@dataclass(frozen=True, slots=True, eq=False)
class _Orphan:
    """A transfer whose record is gone: its memory and place must outlast it."""

    pending: Pending
    bytes_N: Tensor
    place: Extent | None


class Inbound:
    """Fetches under way and fetched memory that backward has not asked for."""

    def __init__(
        self,
        store: ActivationStore,
        stats: SwapStats,
        clock: Callable[[], float],
        targets: Targets | None,
    ) -> None:
        self._store = store
        self._stats = stats
        self._clock = clock
        self._targets = targets
        self._orphans: list[_Orphan] = []

    def start(self, record: Record) -> None:
        """Bring a record back, if that has not begun. One that is still in memory stays there."""
        if record.restored_N is not None:
            return
        record.loading = Done()
        if record.memory_N is not None:
            record.restored_N = record.memory_N
            record.filled = True
            self._stats.forwarded_bytes += record.num_bytes
            return
        self._stats.come_back(record)
        target_N = self._targets.take(record) if self._targets is not None else None
        if target_N is None:
            target_N = self._store.empty(record.num_bytes, record.device)
        if record.place is not None:
            reach = min(round_up_to_pages(record.stored_bytes), target_N.numel())
            record.loading = self._store.fetch(record.place, target_N[:reach])
            self._stats.fetched_bytes += record.stored_bytes
        record.restored_N = target_N
        record.filled = record.is_whole

    def ahead(self, records: Iterable[Record], *, before: int, window_bytes: int) -> None:
        """Fetch what backward wants next: of `records`, newest first, those numbered lower than
        `before`, as long as fetched memory stays within the window."""
        held_bytes = 0
        for record in records:
            # What backward has had once comes again only in a retained graph, and then on demand.
            spent = record.number >= before or record.round > 0
            if record.restored_N is None and spent:
                continue
            held_bytes += record.num_bytes
            if record.restored_N is None:
                if held_bytes > window_bytes:
                    return
                self.start(record)
            self._stats.fetched_peak_bytes = max(self._stats.fetched_peak_bytes, held_bytes)

    def arrive(self, record: Record) -> Tensor:
        """Wait for a record that was started.

        Raises:
            DiskFailure: It cannot be read.
            RuntimeError: Its checksum differs.
        """
        assert record.loading is not None
        assert record.restored_N is not None
        begin_s = self._clock()
        try:
            record.loading.wait()
        except BaseException:
            # Nothing half read stays; asking again starts anew.
            record.restored_N = record.loading = None
            raise
        self._stats.stall_back_s += self._clock() - begin_s
        if record.checksum is not None and not torch.equal(
            record.checksum, checksum(record.restored_N[: record.stored_bytes])
        ):
            raise RuntimeError(
                f"{record.stored_bytes} bytes of activations came back changed; "
                "the disk or the driver is failing: check them, or swap to another tier"
            )
        return record.restored_N

    def abandon(self, record: Record) -> None:
        """Free a record that nobody will ask for, behind the transfers that touch it."""
        self._stats.come_back(record)
        place, record.place, record.fill = record.place, None, None
        if record.restored_N is not None and record.loading is not None:
            self._orphans.append(_Orphan(record.loading, record.restored_N, place))
            record.restored_N = None
        elif place is not None:
            self._store.release(place)

    def settle(self) -> None:
        """Free what abandoned transfers have finished with."""
        for orphan in [o for o in self._orphans if o.pending.done]:
            self._finish(orphan)

    def drain(self) -> None:
        """Wait for abandoned transfers."""
        while self._orphans:
            self._finish(self._orphans[0])

    def _finish(self, orphan: _Orphan) -> None:
        self._orphans.remove(orphan)
        try:
            orphan.pending.wait()
        except DiskFailure:
            # Nobody wants these bytes; whoever asks for others meets the error himself.
            return
        finally:
            if orphan.place is not None:
                self._store.release(orphan.place)
