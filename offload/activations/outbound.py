"""Storages on their way to a tier: how many at once, and when their memory may go."""

from collections import deque
from collections.abc import Callable

from offload.activations.records import Record, SwapOptions, SwapStats, checksum
from offload.activations.stores import ActivationStore, Done


class Outbound:
    """Stores under way. Memory is let go only behind the transfer that reads it."""

    def __init__(
        self,
        store: ActivationStore,
        options: SwapOptions,
        stats: SwapStats,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._stats = stats
        self._clock = clock
        self._limit_bytes = options.max_in_flight_bytes
        self._checksums = options.checksums
        self._records: deque[Record] = deque()

    @property
    def in_flight_bytes(self) -> int:
        """Memory that waits for its transfer."""
        return sum(record.num_bytes for record in self._records)

    def start(self, record: Record) -> None:
        """Store the part of a record that leaves; waits for older ones beyond the limit.

        Raises:
            DiskFailure: An earlier one could not be stored.
        """
        assert record.memory_N is not None
        record.storing = Done()
        if record.place is not None:
            leaving_N = record.memory_N[: record.stored_bytes]
            if self._checksums:
                record.checksum = checksum(leaving_N)
            record.storing = self._store.put(record.place, leaving_N)
            self._stats.stored_bytes += record.stored_bytes
        self._records.append(record)
        self._stats.in_flight_peak_bytes = max(
            self._stats.in_flight_peak_bytes, self.in_flight_bytes
        )
        begin_s = self._clock()
        while self.in_flight_bytes > self._limit_bytes and len(self._records) > 1:
            self._finish(self._records[0])
        self._stats.stall_out_s += self._clock() - begin_s

    def settle(self) -> None:
        """Let go of what has left. Raises DiskFailure for what could not."""
        for record in list(self._records):
            if record.storing is not None and record.storing.done:
                self._finish(record)

    def drain(self) -> None:
        """Wait for all. Raises DiskFailure."""
        while self._records:
            self._finish(self._records[0])

    def _finish(self, record: Record) -> None:
        """If the transfer failed, the record stays in memory and its place is free again."""
        self._records.remove(record)
        storing, record.storing = record.storing, None
        arrived = False
        try:
            if storing is not None:
                storing.wait()
            arrived = True
        finally:
            if arrived:
                record.memory_N = None
                if record.handles > 0 and record.restored_N is None:
                    self._stats.leave(record)
            if (record.handles == 0 or not arrived) and record.place is not None:
                self._store.release(record.place)
                record.place = None
