"""exit.json: how a run ended, in one record that scripts and people read first."""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster.failure import Failure, GaveUp, first_failure
from trainer.errors import BraidError, ExitCode
from trainer.run_folder import RunFolder, write_atomically

LAST_LINES = 50
_TAIL_BYTES = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class ExitRecord:
    """The content of exit.json."""

    code: ExitCode
    cause: str
    host: str | None
    """Machine of the process to blame; None where none is."""

    rank: int | None
    phase: str
    step: int
    last_lines: tuple[str, ...]
    """End of that process's log."""

    time: float
    """Seconds since the epoch."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "code": int(self.code),
            "cause": self.cause,
            "host": self.host,
            "rank": self.rank,
            "phase": self.phase,
            "step": self.step,
            "last_lines": list(self.last_lines),
            "time": self.time,
        }


def record_of(failure: Failure, folder: RunFolder) -> ExitRecord:
    """What to write about the failure that came first. Reads that process's log."""
    return ExitRecord(
        code=failure.exit_code,
        cause=failure.error,
        host=failure.host,
        rank=failure.rank,
        phase=failure.phase,
        step=failure.step,
        last_lines=failure.last_lines or tail(folder.log("worker", failure.rank)),
        time=failure.time_s,
    )


def record_of_surrender(error: GaveUp, folder: RunFolder) -> ExitRecord:
    """What to write where the watchdog gives up. At the first fault of a run that may not be
    started again this is the fault itself."""
    record = record_of(first_failure(error.failures), folder)
    if not error.tried:
        return record
    cause = f"given up after {error.tried} recoveries: {error.why}\n{error.story}"
    return replace(record, code=ExitCode.WATCHDOG, cause=cause)


def record_of_driver(error: BraidError, phase: str, *, now_s: float) -> ExitRecord:
    """What to write about an error of the driver itself, before or beside the workers."""
    return ExitRecord(
        code=error.exit_code,
        cause=str(error),
        host=None,
        rank=None,
        phase=phase,
        step=0,
        last_lines=(),
        time=now_s,
    )


def write_exit(record: ExitRecord, folder: RunFolder) -> None:
    """Replace exit.json."""
    write_atomically(folder.exit, json.dumps(record.as_dict(), indent=2) + "\n")


def tail(path: Path) -> tuple[str, ...]:
    """The last lines of a log; none where it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ()
    return tuple(text.splitlines()[-LAST_LINES:])
