"""Looks at the ranks of one host from outside: what they wrote of themselves, what the system says.

It reads files and process tables only, so it works while a rank is stuck, stopped or dead.
"""

import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cluster.rescuer import Charge, Rescuer
from cluster.watchdog.evidence import RankEvidence
from cluster.watchdog.processes import process_state, thread_times
from cluster.watchdog.spy import StackDump, dump_stacks
from cluster.watchdog.starved import Starvation
from trainer.boards import BoardError, RankReading, read_board


@dataclass(frozen=True, kw_only=True)
class Target:
    """One rank to look at."""

    rank: int
    host: str
    process: int
    """Its number on this host."""

    board: str
    """File that it writes."""


class HostAgent:
    """Every method returns soon, but for `stacks`."""

    def __init__(self) -> None:
        self._starvations: dict[int, Starvation] = {}
        self._boards: set[str] = set()
        self._rescuer: Rescuer | None = None

    def guard(self, charge: Charge) -> None:
        """Have the run's snapshots here saved to disk, should its driver die and none come back."""
        if self._rescuer is None and charge.wait_s > 0:
            self._rescuer = Rescuer(charge, sys.path)

    def release(self) -> None:
        """The run has ended in order: what it left in memory stays there."""
        if self._rescuer is not None:
            self._rescuer.release()
            self._rescuer = None

    def observe(self, targets: Sequence[Target]) -> dict[int, RankEvidence]:
        """What each rank does now, by rank. That it is asked says that the driver lives.

        Boards that are looked at no more are deleted: every start of the ranks leaves some in
        this host's memory.
        """
        if self._rescuer is not None:
            self._rescuer.beat()
        boards = {target.board for target in targets}
        for board in self._boards - boards:
            Path(board).unlink(missing_ok=True)
        self._boards = boards
        self._starvations = {
            target.process: self._starvations.get(target.process, Starvation())
            for target in targets
        }
        return {
            target.rank: _evidence(target, self._starvations[target.process]) for target in targets
        }

    def end(self, process: int) -> None:
        """End a process at once, also one that is stopped."""
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)

    def stacks(self, targets: Sequence[Target], limit_s: float) -> dict[int, StackDump]:
        """Stacks of all threads, by rank, taken side by side within about `limit_s`. Python's
        frames alone: native ones take seconds, and training waits for the end of this."""

        def dump(target: Target) -> StackDump:
            return dump_stacks(target.process, native=False, limit_s=limit_s)

        with ThreadPoolExecutor(max_workers=max(1, len(targets))) as pool:
            return dict(
                zip((target.rank for target in targets), pool.map(dump, targets), strict=True)
            )

    def remove(self, folder: str) -> None:
        """Delete what a run kept in this host's memory."""
        shutil.rmtree(folder, ignore_errors=True)


def _evidence(target: Target, starvation: Starvation) -> RankEvidence:
    return RankEvidence(
        rank=target.rank,
        host=target.host,
        process=process_state(target.process),
        reading=_reading(target),
        starved_s=starvation.add(time.monotonic(), thread_times(target.process)),
        read_s=time.monotonic(),
    )


def _reading(target: Target) -> RankReading | None:
    try:
        own = read_board(Path(target.board))
    except (OSError, BoardError):
        return None  # Not there yet.
    # Of an earlier process of this rank: the present one has not begun to write.
    return own if own.pid == target.process else None
