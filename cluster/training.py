"""The work of a rank: one training process. The only module here that imports torch."""

from cluster.host_memory import host_memory_gib
from cluster.rank import RankControl, RankSpec
from cluster.ray_metrics import RayMetricsSink
from cluster.reading import Outcome
from comms.config import RankEnvironment
from trainer.main import run_job
from trainer.metrics import Sink, StepReport


def train_rank(spec: RankSpec, control: RankControl) -> Outcome:
    """Train as one rank. All ranks call it. Raises what ended the training."""

    def on_report(report: StepReport) -> None:
        control.report(report.metrics_record() | {"total_steps": report.total_steps})

    outcome = run_job(
        spec.job,
        environment_of(spec),
        status=control.status,
        explicit=spec.explicit,
        sinks=sinks_of(spec) if spec.place.rank == 0 else [],
        should_stop=control.should_stop,
        host_memory_gib=host_memory_gib,
        on_report=on_report,
    )
    return Outcome(kind=outcome.kind, step=outcome.step, checkpoint=outcome.checkpoint)


def environment_of(spec: RankSpec) -> RankEnvironment:
    """Who this rank is, in the words of the training process."""
    return RankEnvironment(
        rank=spec.place.rank,
        world_size=spec.world_size,
        local_rank=spec.place.local_rank,
        local_world_size=spec.place.local_world_size,
        host=spec.place.host,
        master_address=spec.master_address,
        master_port=spec.master_port,
        device_type=spec.device_type,
        threads=spec.threads,
    )


def sinks_of(spec: RankSpec) -> list[Sink]:
    """Where rank 0's reports go beside the run folder, which the training process writes."""
    return [RayMetricsSink(run=spec.job.run.name, project=spec.project, role="trainer")]
