"""A process on each host of a run that outlives its controller: it waits for another one to come,
and when none comes in time, saves the snapshots of its host to disk.

It belongs to no Ray process, since Ray ends those of a driver that died. What tells it that the
controller has gone is the end of the pipe it was started with; a run that ends in order says so.
"""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster.environment import variables_without
from trainer.keeping.record import read_record
from trainer.keeping.rescue import rescue
from trainer.run_folder import RunFolder, append_event

_POLL_S = 0.5
_OVER = b"over\n"
_HOME = str(Path(__file__).resolve().parents[1])


@dataclass(frozen=True, kw_only=True)
class Charge:
    """What a rescuer looks after."""

    run: str
    """Folder of the run."""

    memory: str
    """That of its snapshots, on every host."""

    wait_s: float
    """For another controller; 0 has nobody look after it."""


class Rescuer:
    """The process, seen from whoever started it. It goes on if this one ends without `release`."""

    def __init__(self, charge: Charge, path: Sequence[str] = ()) -> None:
        """`path` is where it imports from, besides what Python itself knows."""
        command = [sys.executable, "-m", "cluster.rescuer", json.dumps(asdict(charge))]
        self._process = subprocess.Popen(
            command,
            env=variables_without("RAY_") | {"PYTHONPATH": os.pathsep.join([_HOME, *path])},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            bufsize=0,
        )
        # What was started leaves a child of its own behind, and ends.
        threading.Thread(target=self._process.wait, daemon=True).start()

    def release(self) -> None:
        """The run has ended in order: there is nothing to wait for."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(_OVER)
        self._process.stdin.close()


def watch(charge: Charge, *, host: str) -> None:
    """Look after a run until it has ended in order, another controller has come, or its snapshots
    are on disk. Raises OSError where the disk refuses."""
    if sys.stdin.buffer.readline() == _OVER:
        return
    folder, memory = RunFolder(Path(charge.run)), Path(charge.memory)
    before, seen = read_record(folder.snapshots), -1
    until_s = 0.0
    while memory.is_dir() and before is not None and read_record(folder.snapshots) == before:
        now_s, written = time.monotonic(), _bytes_of(folder.metrics)
        if written != seen:
            # Who goes on training has a controller: it was another process that ended.
            seen, until_s = written, now_s + charge.wait_s
        if now_s >= until_s:
            save(charge, folder, memory, host=host)
            return
        time.sleep(min(_POLL_S, charge.wait_s))


def _bytes_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def save(charge: Charge, folder: RunFolder, memory: Path, *, host: str) -> None:
    """Copy the snapshots of this host to the run's folder, and tell of it."""
    began_s = time.monotonic()
    cause = f"the driver has gone, and none came back within {charge.wait_s:g} s"
    try:
        saved = rescue(memory, folder.rescued)
    except OSError as error:
        append_event(
            folder.events,
            now_s=time.time(),
            kind="rescue_failed",
            step=0,
            host=host,
            cause=f"{cause}; its snapshots could not be saved to {folder.rescued}: {error}",
        )
        return
    if not saved:
        return
    append_event(
        folder.events,
        now_s=time.time(),
        kind="snapshots_rescued",
        step=max(header.step for header in saved),
        host=host,
        cause=cause,
        path=str(folder.rescued),
        seconds=time.monotonic() - began_s,
        bytes=sum(header.total_bytes for header in saved),
    )


def main() -> None:
    """Leave the process that started this one, and watch."""
    if os.fork():
        # Its parent may be ended with all its children; what has no parent stays.
        os._exit(0)
    watch(Charge(**json.loads(sys.argv[1])), host=socket.gethostname())


if __name__ == "__main__":
    main()
