"""Step reports as TensorBoard scalars."""

from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from trainer.metrics import StepReport


class TensorBoardSink:
    """Scalars of every step: metrics under their own names, terms as `predicted/…` and
    `measured/…`, bytes as `bytes/…`."""

    def __init__(self, directory: Path) -> None:
        self._writer = SummaryWriter(str(directory), flush_secs=10)

    def write(self, report: StepReport) -> None:
        """Queue one step's scalars; a thread of the writer's own saves them."""
        for name, value in report.metrics_record().items():
            if name not in ("step", "time"):
                self._writer.add_scalar(name, float(value), report.step, report.time)
        plan = report.plan_record()
        for group in ("predicted", "measured", "bytes"):
            for name, value in plan[group].items():
                self._writer.add_scalar(f"{group}/{name}", value, report.step, report.time)

    def close(self) -> None:
        """Flush and end the writer's thread."""
        self._writer.close()
