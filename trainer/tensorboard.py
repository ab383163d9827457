"""Step reports as TensorBoard scalars."""

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from trainer.metrics import StepReport
from trainer.run_folder import is_full

_ROOM_BYTES = 1 << 20


class TensorBoardSink:
    """Scalars of every step: metrics under their own names, terms as `predicted/…` and
    `measured/…`, bytes as `bytes/…`. Steps during which the disk is full may be missing."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._writer: EventFileWriter | None = None

    def write(self, report: StepReport) -> None:
        """Queue one step's scalars; a thread of the writer's own saves them."""
        try:
            if self._writer is None and self._has_room():
                self._writer = EventFileWriter(str(self._directory), flush_secs=10)
            if self._writer is not None:
                self._writer.add_event(_event_of(report))
        except OSError as error:
            if not is_full(error):
                raise
            self._writer = None  # its thread has ended; another file is begun when there is room

    def close(self) -> None:
        """Flush and end the writer's thread."""
        try:
            if self._writer is not None:
                self._writer.close()
        except OSError as error:
            if not is_full(error):
                raise

    def _has_room(self) -> bool:
        """Whether another file is worth a try: each that fails leaves an empty one."""
        self._directory.mkdir(parents=True, exist_ok=True)
        disk = os.statvfs(self._directory)
        return disk.f_bavail * disk.f_frsize >= _ROOM_BYTES


def _event_of(report: StepReport) -> Event:
    # All in one: the writer's queue has room for ten events, and then keeps the training waiting.
    values = [Summary.Value(tag=tag, simple_value=x) for tag, x in _scalars_of(report).items()]
    return Event(wall_time=report.time, step=report.step, summary=Summary(value=values))


def _scalars_of(report: StepReport) -> dict[str, float]:
    """By tag."""
    metrics = report.metrics_record().items()
    found = {name: float(value) for name, value in metrics if name not in ("step", "time")}
    groups: dict[str, Mapping[str, float]] = {
        "predicted": asdict(report.plan.predicted),
        "measured": asdict(report.measured),
        "bytes": report.bytes_record(),
    }
    for group, values in groups.items():
        found |= {f"{group}/{name}": float(value) for name, value in values.items()}
    return found
