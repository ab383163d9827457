"""Which splits between training and sampling a run's layout and places allow. Pure decisions.

Guarantees, each asserted in tests/cluster/rl/test_places.py:
- numbers of ranks are those that the layout can have with the same global batch, and no fewer than
  recovery.min_workers;
- a place changes hands only where the other kind of process needs no more than was reserved there;
- where places cannot change hands, the reason says which key is in the way.
"""

from cluster.preflight import Needs
from cluster.recovery.shrink import largest_job
from trainer.config import JobConfig
from trainer.rl.conducting.split import Places, Split


def places_of(job: JobConfig, needs: Needs, *, least_ranks: int, spare: int = 0) -> Places:
    """Of a run that begins with `needs`, and may have `spare` workers more."""
    now = Split(trainers=needs.workers, workers=needs.rollouts)
    total = now.trainers + now.workers
    fixed = _fixed(job, needs)
    to_ranks = not fixed and _holds(needs.rollout_bundle(), needs.bundle())
    to_workers = not fixed and _holds(needs.bundle(), needs.rollout_bundle())
    sizes = [n for n in range(least_ranks, total) if _can_train(job, n)]
    return Places(
        now=now,
        trainer_sizes=tuple(sizes),
        most_trainers=total - 1 if to_ranks else now.trainers,
        most_workers=total - 1 if to_workers else now.workers,
        spare=spare,
        fixed=fixed or _too_small(needs, to_ranks=to_ranks, to_workers=to_workers),
    )


def _can_train(job: JobConfig, ranks: int) -> bool:
    return largest_job(job, at_most=ranks, at_least=ranks) is not None


def _holds(place: dict[str, float], needed: dict[str, float]) -> bool:
    return all(place.get(name, 0.0) >= amount - 1e-9 for name, amount in needed.items())


def _fixed(job: JobConfig, needs: Needs) -> str:
    if job.parallel.island > 1:
        return f"parallel.island={job.parallel.island}: islands keep their ranks"
    if needs.spares:
        return f"cluster.spares={needs.spares}: processes that wait would take the places"
    if job.keep.interval_steps == 0 and job.checkpoint.interval_steps == 0:
        return "keep.interval_steps=0: ranks change at a step that is in memory"
    return ""


def _too_small(needs: Needs, *, to_ranks: bool, to_workers: bool) -> str:
    if to_ranks and to_workers:
        return ""
    rank, worker = needs.bundle(), needs.rollout_bundle()
    return (
        f"a rank reserves {_told(rank)} (cluster.*_per_worker) and a worker that samples "
        f"{_told(worker)} (rollout.*_per_worker); with the same on both sides, either can have the "
        "places of the other"
    )


def _told(bundle: dict[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in bundle.items()) or "nothing"
