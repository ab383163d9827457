"""Plant a series of faults in a run, one after the other, by what the run's files say of it."""

import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.drills.series import Kind, PlannedFault
from cluster.memory_folder import memory_folder
from trainer.boards import BoardError, read_board
from trainer.run_folder import RunFolder, read_lines

_POLL_S = 0.005
_SLOW_FOR_S = 1.0
_SLICE_S = 0.02


@dataclass(frozen=True, kw_only=True)
class PlantedFault:
    """One fault as it was planted."""

    planned: PlannedFault
    at_s: float
    """Seconds since the epoch, as events.jsonl has them."""

    step: int
    """Last one that was reported."""

    generation: int
    processes: tuple[int, ...]
    phases: tuple[str, ...]
    """What each of them was doing, by its own board; empty where it had not written any."""


class RunEnded(Exception):
    """The run ended before all faults had come."""


@dataclass(kw_only=True)
class Planter:
    """Follows one run of this machine. `ended` says that it is over; faults come no more then."""

    folder: RunFolder
    total_steps: int
    ended: Callable[[], bool]
    planted: list[PlantedFault] = field(default_factory=list, init=False)

    def plant(self, faults: Sequence[PlannedFault]) -> None:
        """Plant all of them, in order; returns when the last has come. Raises RunEnded."""
        for fault in faults:
            self._await_moment(fault)
            time.sleep(fault.delay_s)
            self.planted.append(self._plant(fault))

    def await_steps(self, count: int) -> None:
        """Until the newest generation is `count` steps beyond where it is now. Raises RunEnded."""
        began = self._step()
        self._await(lambda: self._step() >= began + count)

    def _await_moment(self, fault: PlannedFault) -> None:
        before = self.planted[-1] if self.planted else None
        recovering = before is not None and before.planned.ends_ranks
        generation = before.generation + 1 if before is not None and recovering else 0
        self._await(lambda: self._generation() >= generation)
        if fault.moment in ("before-steps", "recovery"):
            return
        if fault.moment == "last-step":
            self._await(lambda: self._step() >= self.total_steps - 1)
            return
        # What was lost is trained again: only what comes after it is undisturbed.
        self._await(lambda: not recovering or self._recovered(generation))
        began = self._step()
        self._await(lambda: self._step() >= began + fault.after_steps)
        if fault.moment == "checkpoint":
            self._await(self._saving)

    def _await(self, holds: Callable[[], bool]) -> None:
        while not holds():
            if self.ended():
                raise RunEnded(f"the run ended after {len(self.planted)} faults")
            time.sleep(_POLL_S)

    def _plant(self, fault: PlannedFault) -> PlantedFault:
        started = self._started()[-1]
        processes = tuple(int(started["ranks"][rank]["process"]) for rank in fault.ranks)
        generation = int(started["generation"])
        step, at_s = self._step(), time.time()
        for process, kind in zip(processes, fault.kinds, strict=True):
            # It may just have ended by itself, as after a fault before this one.
            with suppress(ProcessLookupError):
                _disturb(process, kind)
        memory = memory_folder(self.folder.root)
        return PlantedFault(
            planned=fault,
            at_s=at_s,
            step=step,
            generation=generation,
            processes=processes,
            phases=tuple(_phase(memory / f"board-{generation}-{rank}") for rank in fault.ranks),
        )

    def _generation(self) -> int:
        started = self._started()
        return int(started[-1]["generation"]) if started else -1

    def _started(self) -> list[dict[str, Any]]:
        return [
            event for event in read_lines(self.folder.events) if event["kind"] == "ranks_started"
        ]

    def _recovered(self, generation: int) -> bool:
        events = read_lines(self.folder.events)
        last = max(
            (
                number
                for number, event in enumerate(events)
                if event["kind"] == "ranks_started" and event["generation"] >= generation
            ),
            default=len(events),
        )
        return any(event["kind"] == "recovered" for event in events[last:])

    def _step(self) -> int:
        found = read_lines(self.folder.metrics)
        return int(found[-1]["step"]) if found else 0

    def _saving(self) -> bool:
        return any(self.folder.checkpoints.glob("step-*.partial*"))


def _disturb(process: int, kind: Kind) -> None:
    if kind == "kill":
        os.kill(process, signal.SIGKILL)
    elif kind == "stop":
        os.kill(process, signal.SIGSTOP)
    else:
        _slow_down(process)


def _slow_down(process: int) -> None:
    """Give it every second slice of time for a while."""
    until_s = time.monotonic() + _SLOW_FOR_S
    while time.monotonic() < until_s:
        os.kill(process, signal.SIGSTOP)
        time.sleep(_SLICE_S)
        os.kill(process, signal.SIGCONT)
        time.sleep(_SLICE_S)


def _phase(board: Path) -> str:
    try:
        return read_board(board).phase
    except (OSError, BoardError):
        return ""
