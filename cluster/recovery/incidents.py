"""The faults of a run as they go into events.jsonl, and how it got over them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.failure import Failure
from cluster.reading import Place
from cluster.recovery.budget import Fault
from trainer.run_folder import append_event

_KINDS = {"died": "worker_lost", "hung": "worker_hung", "silent": "worker_lost"}


INCIDENT_KINDS = (
    "worker_lost",
    "worker_hung",
    "worker_failed",
    "host_lost",
    "host_cordoned",
    "spare_lost",
    "rollout_lost",
    "channel_store_lost",
    "hang",
    "data",
    "storage",
    "straggler",
    "link_slow",
    "recovered",
    "rolled_back",
    "layout_changed",
    "loss_spike",
    "loss_not_finite",
    "numeric_fault",
    "memory_slope",
    "checkpoint_failed",
    "checkpoint_skipped",
    "snapshots_off",
    "replicas_behind",
    "publish_failed",
    "update_failed",
    "failed",
)
"""Kinds of events that people should see."""


class Incidents:
    """Written by the driver alone. `clock` is monotonic, `now` gives seconds since the epoch."""

    def __init__(
        self, events: Path, *, clock: Callable[[], float], now: Callable[[], float]
    ) -> None:
        self._events = events
        self._clock = clock
        self._now = now
        self._last_step = 0
        self._stepped = False
        self._open: Fault | None = None
        self.faults: list[Fault] = []
        """All of them, oldest first."""

    def fault(self, failure: Failure, others: Sequence[Failure] = ()) -> Fault:
        """Note the failure to blame, and `others` of the same moment. A second one before the next
        step belongs to the same standstill, which counts from the first."""
        fault = Fault(failure=failure, at_s=self._clock(), stepped=self._stepped)
        self.faults.append(fault)
        self._stepped = False
        self._open = self._open or fault
        for one in (failure, *others):
            append_event(
                self._events,
                now_s=self._now(),
                kind=_KINDS.get(one.kind, "worker_failed"),
                step=one.step,
                host=one.host,
                rank=one.rank,
                phase=one.phase,
                cause=one.error,
                detected_s=one.detected_s,
                evidence=list(one.evidence),
            )
        return fault

    def hosts_lost(self, hosts: Sequence[str], failure: Failure) -> None:
        """Hosts that are gone with everything on them."""
        for host in hosts:
            append_event(
                self._events,
                now_s=self._now(),
                kind="host_lost",
                step=failure.step,
                host=host,
                cause=failure.error,
                detected_s=failure.detected_s,
            )

    def step(self, record: dict[str, Any]) -> None:
        """A step was reported. The first one after a fault closes it."""
        step = int(record["step"])
        if self._open is not None:
            append_event(
                self._events,
                now_s=self._now(),
                kind="recovered",
                step=step,
                host=self._open.failure.host,
                rank=self._open.failure.rank,
                cause=self._open.failure.error,
                resumed_s=self._clock() - self._open.at_s,
                lost_steps=max(0, self._last_step - (step - 1)),
            )
            self._open = None
        self._last_step = step
        self._stepped = True

    def began(self, generation: int, places: Sequence[Place], processes: Mapping[int, int]) -> None:
        """Ranks were put together."""
        append_event(
            self._events,
            now_s=self._now(),
            kind="ranks_started",
            step=self._last_step,
            generation=generation,
            ranks=[
                {"rank": place.rank, "host": place.host, "process": processes[place.rank]}
                for place in places
            ],
        )

    def spare_lost(self, host: str, number: int) -> None:
        """A process that waited for work is gone; training is not disturbed."""
        append_event(
            self._events,
            now_s=self._now(),
            kind="spare_lost",
            step=self._last_step,
            host=host,
            cause=f"process {number}, which had no rank, died or stopped; another one is started",
        )

    def layout_changed(self, before: int, after: int) -> None:
        """Another number of ranks goes on."""
        append_event(
            self._events,
            now_s=self._now(),
            kind="layout_changed",
            step=self._last_step,
            ranks_before=before,
            ranks=after,
        )
