"""What a training process is told, and how it talks back. Neither torch nor ray."""

import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from cluster.reading import Outcome
from comms.config import RankEnvironment
from trainer.config import JobConfig
from trainer.status import Status

REPORTS_KEPT = 4096
"""Reports that wait for a driver that does not ask; the files on disk hold all of them."""


@dataclass(frozen=True, kw_only=True)
class RankSpec:
    """Everything one rank is told."""

    environment: RankEnvironment
    project: str
    """Label on exported metrics."""

    job: JobConfig
    explicit: Mapping[str, str]
    """Keys of the job that the recipe set, and where."""

    memory_folder: str
    """Folder in this host's memory, shared by the ranks of the run that are here."""

    @property
    def board(self) -> str:
        """File in which this rank tells what it does, readable while it is stuck or dead."""
        return f"{self.memory_folder}/board-{self.environment.generation}-{self.environment.rank}"


class RankControl:
    """Shared by the training thread and the thread that answers the driver."""

    def __init__(self) -> None:
        self.status = Status()
        self._stop = threading.Event()
        self._regroup = threading.Event()
        self._lock = threading.Lock()
        self._reports: deque[dict[str, Any]] = deque(maxlen=REPORTS_KEPT)

    def request_stop(self) -> None:
        """Ask the training thread to save and end."""
        self._stop.set()

    def should_stop(self) -> bool:
        """Whether it was asked."""
        return self._stop.is_set()

    def request_regroup(self) -> None:
        """Ask the training thread to end at a step that is in memory."""
        self._regroup.set()

    def should_regroup(self) -> bool:
        """Whether it was asked."""
        return self._regroup.is_set()

    def report(self, record: dict[str, Any]) -> None:
        """Hand over what one step measured. The training thread calls it."""
        with self._lock:
            self._reports.append(record)

    def take_reports(self) -> tuple[dict[str, Any], ...]:
        """Reports not taken yet, oldest first."""
        with self._lock:
            taken = tuple(self._reports)
            self._reports.clear()
        return taken


RankJob: TypeAlias = Callable[[RankSpec, RankControl], Outcome]
"""The work of one rank, from joining the others to its end."""
