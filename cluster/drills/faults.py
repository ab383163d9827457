"""Plant faults in a running job, from outside of its processes."""

import os
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from trainer.checkpoint.folder import list_complete
from trainer.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a fault is done to."""

    rank: int
    host: str
    process: int
    """Its number on its host."""

    folder: RunFolder
    driver: int
    """Process of the driver."""


class Fault(Protocol):
    """One way to disturb a run."""

    def plant(self, target: Target) -> None:
        """Do it. Called once, from the driver, while the run trains."""

    def remove(self) -> None:
        """Undo what would outlive the run."""


class KillWorker:
    """A worker ends at once, as for want of memory."""

    def plant(self, target: Target) -> None:
        os.kill(target.process, signal.SIGKILL)

    def remove(self) -> None:
        """Nothing is left."""


class HangWorker:
    """A worker stops and stays: its connections live, its threads stand still."""

    def plant(self, target: Target) -> None:
        os.kill(target.process, signal.SIGSTOP)

    def remove(self) -> None:
        """Whoever found it has ended it."""


class SlowWorker:
    """A worker gets every second slice of time only."""

    def __init__(self, *, slice_s: float = 0.02) -> None:
        self._slice_s = slice_s
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def plant(self, target: Target) -> None:
        self._thread = threading.Thread(target=self._slow, args=(target.process,), daemon=True)
        self._thread.start()

    def remove(self) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def _slow(self, process: int) -> None:
        try:
            while not self._over.is_set():
                os.kill(process, signal.SIGSTOP)
                self._over.wait(self._slice_s)
                os.kill(process, signal.SIGCONT)
                self._over.wait(self._slice_s)
        except ProcessLookupError:
            return


class CorruptCheckpoint:
    """Bytes of the newest checkpoint change on disk, and then a worker ends."""

    def plant(self, target: Target) -> None:
        newest = list_complete(target.folder.checkpoints)[0][1]
        flip_bytes(max(newest.glob("*.safetensors"), key=lambda path: path.stat().st_size))
        os.kill(target.process, signal.SIGKILL)

    def remove(self) -> None:
        """Nothing is left."""


class KillController:
    """The driver ends at once."""

    def plant(self, target: Target) -> None:
        os.kill(target.driver, signal.SIGKILL)

    def remove(self) -> None:
        """Nothing is left."""


FAULTS: Mapping[str, type[Fault]] = {
    "kill-worker": KillWorker,
    "hang-worker": HangWorker,
    "slow-worker": SlowWorker,
    "corrupt-checkpoint": CorruptCheckpoint,
    "kill-controller": KillController,
}
"""By the name of the drill."""


def flip_bytes(path: Path, *, count: int = 64) -> None:
    """Change bytes in the middle of a file."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        old = file.read(count)
        file.seek(-len(old), os.SEEK_CUR)
        file.write(bytes(byte ^ 0xFF for byte in old))
