"""Step reports as Ray metrics, which Ray exports to Prometheus with the prefix `ray_`."""

from collections.abc import Callable

from ray.util.metrics import Gauge

from trainer.metrics import StepReport

_GAUGES = {
    "trainer_step": "Optimizer steps done.",
    "trainer_loss": "Mean loss over the step's target tokens.",
    "trainer_grad_norm": "Global gradient norm before clipping.",
    "trainer_learning_rate": "Learning rate of the step.",
    "trainer_throughput_tokens_per_sec": "Input tokens per second, all ranks together.",
    "trainer_mfu_percent": "Model FLOP/s over the devices' peak.",
    "trainer_peak_memory_gib": "Highest device memory of rank 0.",
    "trainer_host_memory_gib": "Memory in use on rank 0's host.",
    "trainer_step_duration_seconds": "Duration of the step.",
    "trainer_last_step_timestamp_seconds": "When the last step ended, seconds since the epoch.",
}


def gauge_values(report: StepReport) -> dict[str, float]:
    """Value of every gauge. The step is a value and never a label: labels are kept for ever."""
    return {
        "trainer_step": report.step,
        "trainer_loss": report.loss,
        "trainer_grad_norm": report.grad_norm,
        "trainer_learning_rate": report.lr,
        "trainer_throughput_tokens_per_sec": report.tokens_per_s,
        "trainer_mfu_percent": 100.0 * report.mfu,
        "trainer_peak_memory_gib": report.memory_gib,
        "trainer_host_memory_gib": report.host_memory_gib,
        "trainer_step_duration_seconds": report.step_s,
        "trainer_last_step_timestamp_seconds": report.time,
    }


class RayMetricsSink:
    """Gauges of the newest step. Needs a process that Ray started or that is connected to it."""

    def __init__(self, *, run: str, project: str, role: str) -> None:
        tags = {"run": run, "project": project, "role": role}
        self.gauges = {
            name: Gauge(name, description=text, tag_keys=tuple(tags))
            for name, text in _GAUGES.items()
        }
        for gauge in self.gauges.values():
            gauge.set_default_tags(tags)

    def write(self, report: StepReport) -> None:
        """Set all gauges; Ray exports them in the background."""
        for name, value in gauge_values(report).items():
            self.gauges[name].set(value)

    def close(self) -> None:
        """Nothing is buffered."""


SINCE_STEP = "trainer_seconds_since_last_step"


class SinceStep:
    """A gauge of the driver: it goes on rising while the ranks stand still or are gone."""

    def __init__(self, *, run: str, project: str, clock: Callable[[], float]) -> None:
        """`clock` is monotonic."""
        tags = {"run": run, "project": project, "role": "driver"}
        self.gauge = Gauge(
            SINCE_STEP,
            description="Seconds since the last step, or since the driver began.",
            tag_keys=tuple(tags),
        )
        self.gauge.set_default_tags(tags)
        self._clock = clock
        self._step_s = clock()

    def step(self) -> None:
        """A step is done."""
        self._step_s = self._clock()

    def update(self) -> float:
        """Set the gauge; what it is set to."""
        seconds = self._clock() - self._step_s
        self.gauge.set(seconds)
        return seconds
