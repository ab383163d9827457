"""A process on each host of a run that outlives its controller: when nothing is heard of that one
and no other comes in time, it saves the snapshots of its host to disk.

It belongs to no Ray process, since Ray ends those of a driver that died, and may take minutes to
notice that its head has vanished. It hears of the controller over the pipe it was started with: a
byte whenever the controller looked at this host, and a word when the run has ended in order.
"""

import json
import math
import os
import select
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
from trainer.keeping.record import Record, read_record
from trainer.keeping.rescue import rescue
from trainer.run_folder import RunFolder, append_event

_POLL_S = 0.5
_BEAT_S = 1.0
_SILENT_S = 3.0
"""Without a beat for so long it looks at what the run's folder says; sooner than a controller that
lost sight of this host would go on without it."""

_BEAT, _OVER = b".", b"!"
_HOME = str(Path(__file__).resolve().parents[1])


@dataclass(frozen=True, kw_only=True)
class Charge:
    """What a rescuer looks after."""

    run: str
    """Folder of the run."""

    memory: str
    """That of its snapshots, on every host."""

    wait_s: float
    """Without a word of the controller; 0 has nobody look after it."""


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
        assert self._process.stdin is not None
        self._pipe = self._process.stdin
        os.set_blocking(self._pipe.fileno(), False)
        self._beat_s = 0.0
        # What was started leaves a child of its own behind, and ends.
        threading.Thread(target=self._process.wait, daemon=True).start()

    def beat(self) -> None:
        """The controller looks at this host. To be called at least every two seconds."""
        now_s = time.monotonic()
        if now_s - self._beat_s >= _BEAT_S:
            self._beat_s = now_s
            self._say(_BEAT)

    def release(self) -> None:
        """The run has ended in order: there is nothing to wait for."""
        self._say(_OVER)
        self._pipe.close()

    def _say(self, word: bytes) -> None:
        # It may have been ended, or stopped for hours.
        with suppress(BrokenPipeError):
            self._pipe.write(word)


@dataclass(frozen=True)
class _Alone:
    """What the run's folder said when nothing was heard any more."""

    record: Record | None
    written_bytes: int
    since_s: float


class Watch:
    """What a rescuer does, from one look to the next. Times are by one monotonic clock."""

    def __init__(self, charge: Charge, *, host: str) -> None:
        self._charge = charge
        self._host = host
        self._folder, self._memory = RunFolder(Path(charge.run)), Path(charge.memory)
        self._heard_s = math.inf  # A controller that starts processes has nothing to look at yet.
        self._alone: _Alone | None = None
        self._saved = False

    def heard(self, now_s: float) -> None:
        """The controller lives."""
        self._heard_s, self._alone, self._saved = now_s, None, False

    def look(self, now_s: float, *, ended: bool) -> bool:
        """See what there is to do; whether nobody needs this any more. `ended` says that nothing
        will be heard. Raises OSError where the disk refuses even a word."""
        if self._saved or not (ended or now_s - self._heard_s >= _SILENT_S):
            return self._saved and ended
        found = _Alone(read_record(self._folder.snapshots), _bytes_of(self._folder.metrics), now_s)
        before = self._alone or found
        if not self._memory.is_dir() or found.record is None or found.record != before.record:
            # There is nothing to save, or somebody has gone on from it.
            self.heard(now_s)
            return ended
        if found.written_bytes != before.written_bytes or self._alone is None:
            # Who goes on training has a controller.
            self._alone = found
        elif now_s - before.since_s >= self._charge.wait_s:
            save(self._charge, self._folder, self._memory, host=self._host)
            self._saved = True
        return self._saved and ended


def watch(charge: Charge, *, host: str) -> None:
    """Look after a run until it has ended in order, another controller has come, or its snapshots
    are on disk. Raises OSError where the disk refuses even a word."""
    watching = Watch(charge, host=host)
    poll_s = min(_POLL_S, charge.wait_s)
    ended = False
    while True:
        if ended:
            time.sleep(poll_s)
        elif select.select([0], [], [], poll_s)[0]:
            words = os.read(0, 4096)
            if _OVER in words:
                return
            ended = not words
            if words:
                watching.heard(time.monotonic())
        if watching.look(time.monotonic(), ended=ended):
            return


def _bytes_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def save(charge: Charge, folder: RunFolder, memory: Path, *, host: str) -> None:
    """Copy the snapshots of this host to the run's folder, and tell of it."""
    began_s = time.monotonic()
    cause = f"nothing was heard of the driver for {charge.wait_s:g} s, and no other one came"
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
