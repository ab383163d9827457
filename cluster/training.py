"""The work of a rank: one training process. The only module here that imports torch."""

from pathlib import Path

from cluster.host_memory import host_memory_gib
from cluster.rank import RankControl, RankSpec
from cluster.ray_metrics import RayMetricsSink
from cluster.reading import Outcome
from trainer.main import run_job
from trainer.metrics import Sink, StepReport


def train_rank(spec: RankSpec, control: RankControl) -> Outcome:
    """Train as one rank. All ranks call it. Raises what ended the training."""

    first = spec.environment.rank == 0

    def on_report(report: StepReport) -> None:
        # Every rank has a report; the driver shows one line per step.
        if first:
            control.report(report.metrics_record() | {"total_steps": report.total_steps})

    outcome = run_job(
        spec.job,
        spec.environment,
        status=control.status,
        explicit=spec.explicit,
        sinks=sinks_of(spec) if first else [],
        should_stop=control.should_stop,
        should_regroup=control.should_regroup,
        host_memory_gib=host_memory_gib,
        on_report=on_report,
        board=Path(spec.board),
    )
    return Outcome(kind=outcome.kind, step=outcome.step, checkpoint=outcome.checkpoint)


def sinks_of(spec: RankSpec) -> list[Sink]:
    """Where rank 0's reports go beside the run folder, which the training process writes."""
    return [RayMetricsSink(run=spec.job.run.name, project=spec.project, role="trainer")]
