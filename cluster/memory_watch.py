"""Host memory over steps: remembers samples per host and says once when it is running out."""

from collections import deque
from collections.abc import Mapping

from cluster.host_memory import GIB, slope_alarm
from cluster.reading import Reading

WARM_UP_STEPS = 10
"""Allocators and caches fill in the first steps of a process; that is no trend."""

_WINDOW = 48


class MemoryWatch:
    """Samples of all hosts. Feed it every reading; it answers with an alarm or None."""

    def __init__(self, *, horizon_steps: int) -> None:
        self._horizon_steps = horizon_steps
        self._samples: dict[str, deque[tuple[int, int]]] = {}
        self._first_step: dict[int, int] = {}
        self._first_bytes: dict[int, int] = {}
        self._quiet_until: dict[str, int] = {}

    def add(self, reading: Reading, host: str, ranks_of_host: Mapping[int, Reading]) -> str | None:
        """Take one reading; `ranks_of_host` are the newest of all ranks there, to name the one
        that grew most."""
        first = self._first_step.setdefault(reading.rank, reading.step)
        if reading.phase != "training" or reading.step < first + WARM_UP_STEPS:
            return None
        self._first_bytes.setdefault(reading.rank, reading.memory.process_bytes)
        samples = self._samples.setdefault(host, deque(maxlen=_WINDOW))
        if samples and reading.step <= samples[-1][0]:
            return None
        samples.append((reading.step, reading.memory.host_used_bytes))
        if reading.step < self._quiet_until.get(host, 0):
            return None
        alarm = slope_alarm(
            list(samples),
            capacity_bytes=reading.memory.host_total_bytes,
            horizon_steps=self._horizon_steps,
        )
        if alarm is None:
            return None
        self._quiet_until[host] = reading.step + max(1, self._horizon_steps // 4)
        return f"host memory of {host}: {alarm}; {self._most_grown(ranks_of_host)}"

    def _most_grown(self, readings: Mapping[int, Reading]) -> str:
        growth = {
            rank: reading.memory.process_bytes - self._first_bytes[rank]
            for rank, reading in readings.items()
            if rank in self._first_bytes
        }
        rank = max(growth, key=lambda rank: growth[rank])
        return f"of its ranks, {rank} grew most ({growth[rank] / GIB:+.2f} GiB since warm-up)"
