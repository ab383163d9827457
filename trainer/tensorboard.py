"""Step reports as TensorBoard scalars."""

import os
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from trainer.metrics import StepReport
from trainer.run_folder import is_full

_ROOM_BYTES = 1 << 20


class TensorBoardSink:
    """Scalars of every step: metrics under their own names, terms as `predicted/…` and
    `measured/…`, bytes as `bytes/…`. Steps during which the disk is full may be missing."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._writer: SummaryWriter | None = None

    def write(self, report: StepReport) -> None:
        """Queue one step's scalars; a thread of the writer's own saves them."""
        try:
            if self._writer is None and self._has_room():
                self._writer = SummaryWriter(str(self._directory), flush_secs=10)
            if self._writer is not None:
                self._queue(self._writer, report)
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

    def _queue(self, writer: SummaryWriter, report: StepReport) -> None:
        for name, value in report.metrics_record().items():
            if name not in ("step", "time"):
                writer.add_scalar(name, float(value), report.step, report.time)
        plan = report.plan_record()
        for group in ("predicted", "measured", "bytes"):
            for name, value in plan[group].items():
                writer.add_scalar(f"{group}/{name}", value, report.step, report.time)
