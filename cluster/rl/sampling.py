"""The work of a process that samples. The only module here that imports torch for it."""

from cluster.rl.rollout_worker import RolloutControl, RolloutSpec
from trainer.rl.rollout.worker import run_rollouts


def sample(spec: RolloutSpec, control: RolloutControl) -> None:
    """Sample until asked to stop. Raises what ended the sampling."""
    run_rollouts(
        spec.job,
        name=spec.name,
        host=spec.host,
        device=spec.device,
        threads=spec.threads,
        inbox=control.post.inbox,
        outbox=control.post.outbox,
        should_stop=control.should_stop,
    )
