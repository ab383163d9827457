"""What the driver tells of a run to those who watch it from elsewhere: TensorBoard, Ray metrics."""

import contextlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.ray_metrics import SinceStep
from cluster.recovery.incidents import INCIDENT_KINDS
from trainer.run_folder import RunFolder

if TYPE_CHECKING:
    from trainer.incident_texts import IncidentTexts

_LOOK_EVERY_S = 1.0


class Telling:
    """Polled by the driver's main thread; closed when the run is over, however it ended."""

    def __init__(
        self, folder: RunFolder, *, run: str, project: str, clock: Callable[[], float]
    ) -> None:
        self._folder = folder
        self._clock = clock
        self.since_step = SinceStep(run=run, project=project, clock=clock)
        # What an earlier driver of the run wrote, it told.
        self._offset = _size(folder.events)
        self._texts: IncidentTexts | None = None
        self._refused = False
        self._looked_s = clock()

    def step(self) -> None:
        """A step was reported."""
        self.since_step.step()

    def poll(self) -> None:
        """Tell what is new, about once a second."""
        if self._clock() - self._looked_s < _LOOK_EVERY_S:
            return
        self._looked_s = self._clock()
        self.since_step.update()
        self._tell()

    def _tell(self) -> None:
        events, self._offset = new_events(self._folder.events, self._offset)
        worth = [event for event in events if event["kind"] in INCIDENT_KINDS]
        if not worth or self._refused:
            return
        try:
            self._write(worth)
        except OSError:
            # On a full disk the run itself is what matters; events.jsonl has its own say.
            self._refused = True

    def _write(self, events: Sequence[dict[str, Any]]) -> None:
        # Imported with the first incident: most runs have none, and it takes a while.
        from trainer.incident_texts import IncidentTexts

        if self._texts is None:
            self._texts = IncidentTexts(self._folder.tensorboard)
        for event in events:
            self._texts.write(event)

    def close(self) -> None:
        """Tell the rest."""
        self._tell()
        if self._texts is not None:
            self._texts.close()


def new_events(log: Path, offset: int) -> tuple[list[dict[str, Any]], int]:
    """Whole lines of events.jsonl behind `offset`, and where they end.

    A line that is no JSON is left out: hosts that share a file system may write over each other.
    """
    if _size(log) <= offset:
        return [], offset
    with log.open("rb") as file:
        file.seek(offset)
        whole, newline, _ = file.read().rpartition(b"\n")
    events = []
    for line in whole.splitlines():
        with contextlib.suppress(ValueError):
            events.append(json.loads(line))
    return events, offset + len(whole + newline)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
