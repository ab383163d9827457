"""What a run by rewards needs beside its ranks: seats, store, rewards and the conducting thread."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup

from cluster.crew import Crew
from cluster.preflight import GIB, Needs, Node
from cluster.rewards.pool import RewardPool
from cluster.rl.channel_store import StoreKeeper
from cluster.rl.conducting import Conducting
from cluster.rl.gauges import RewardGauges
from cluster.rl.places import places_of
from cluster.rl.reserve import Reserve, place_in
from cluster.rl.rollout_worker import RolloutSpec
from cluster.rl.rollouts import Rollouts
from cluster.rl.seat import Seat
from cluster.rl.seating import Seating
from cluster.rl.turns import Parts
from cluster.run import Run
from trainer.config import JobConfig
from trainer.rl.conducting.conductor import Conductor
from trainer.rl.conducting.split import Places
from trainer.rl.config import RolloutConfig
from trainer.rl.tasks.build import build_task


@dataclass(frozen=True, kw_only=True)
class RolloutMeans:
    """What the sections of the recipe say of the processes that sample."""

    workers: int
    colocated: int
    spare: int
    cpus: float
    gpus: float
    memory_bytes: int
    max_restarts: int
    start_limit_s: float


def rollout_means(config: RolloutConfig, start_limit_s: float) -> RolloutMeans:
    """What the section says, in the words of this package."""
    return RolloutMeans(
        workers=config.workers,
        colocated=config.colocated_workers,
        spare=config.spare_workers,
        cpus=config.cpus_per_worker,
        gpus=config.gpus_per_worker,
        memory_bytes=int(config.memory_per_worker_gib * GIB),
        max_restarts=config.max_restarts,
        start_limit_s=start_limit_s,
    )


@contextmanager
def conducting(
    run: Run,
    group: PlacementGroup,
    crew: Crew,
    means: RolloutMeans,
    here: Node,
    project: str,
    least_ranks: int,
) -> Iterator[Conducting]:
    """The conducting thread at work, with the processes that sample; all ended on leaving.

    The crew's first processes are ready. Raises RecipeError where the job's task is no good.
    """
    store = StoreKeeper(here, start_limit_s=means.start_limit_s)
    reserve = Reserve(f"{run.job.run.name}-spare", crew.needs.rollout_bundle())
    own, shared, spare = own_seats(crew.needs, means), shared_seats(crew, means), spare_seats(means)
    rollouts = Rollouts(
        seats=[*own, *shared],
        find_place=lambda s: reserve.find(s.index) if s.spare else place_in(group, s.bundle),
        release=lambda seat: reserve.release(seat.index),
        spec_of=lambda seat, name, host: spec_of(run.job, seat, name, host, crew.needs),
        folder=run.folder,
        work=run.rollout_work,
        start_limit_s=means.start_limit_s,
    )

    reward = run.job.rl.reward
    places = places_of(run.job, crew.needs, least_ranks=least_ranks, spare=means.spare)
    found = Conducting(
        Parts(
            folder=run.folder,
            rollouts=rollouts,
            seating=Seating(
                own,
                ranks=crew.needs.workers,
                make=lambda index, bundle: own_seat(index, bundle, means),
                reserve=spare,
                taken=len(own) + len(shared) + len(spare),
            ),
            max_restarts=means.max_restarts,
            supervised_steps=run.job.rl.supervised_steps,
            store=store,
            open_rewards=(lambda: RewardPool(reward)) if reward.function else None,
            conductor=lambda place, state: conductor_of(run.job, place, state, places),
        ),
        RewardGauges(run=run.job.run.name, project=project),
    )
    try:
        found.open()
        yield found
    finally:
        found.close()
        store.close()
        reserve.close()


def conductor_of(
    job: JobConfig, store: tuple[str, int], state: Mapping[str, Any] | None, places: Places
) -> Conductor:
    """Who decides. Raises RecipeError or DataError where the task is no good."""
    # Its file is read here for its faults to be known at once; own tasks are imported where they
    # sample. All ask without end, in epochs where there is a file: the run ends by its steps.
    if job.rl.task.kind != "own":
        build_task(job.rl.task, seed=job.run.seed)
    return Conductor(
        job.rl,
        job.rollout,
        seed=job.run.seed,
        last_version=job.train.steps - job.rl.supervised_steps,
        store=store,
        state=state,
        places=places,
    )


def own_seats(needs: Needs, means: RolloutMeans) -> list[Seat]:
    """Those with bundles of their own."""
    first = needs.first_rollout_bundle
    return [own_seat(index, first + index, means) for index in range(means.workers)]


def spare_seats(means: RolloutMeans) -> list[Seat]:
    """Those in room that is not reserved."""
    first = means.workers + means.colocated
    return [own_seat(first + index, -1, means, spare=True) for index in range(means.spare)]


def own_seat(index: int, bundle: int, means: RolloutMeans, *, spare: bool = False) -> Seat:
    """One whose bundle nobody shares."""
    return Seat(
        index=index,
        bundle=bundle,
        cpus=means.cpus,
        gpus=means.gpus,
        memory_bytes=means.memory_bytes,
        spare=spare,
    )


def shared_seats(crew: Crew, means: RolloutMeans) -> list[Seat]:
    """Those in the bundles of ranks, which reserve nothing and see the rank's device."""
    by_bundle = {member.bundle: member for member in crew.ready}
    hosts: Sequence[int] = [index % crew.needs.workers for index in range(means.colocated)]
    devices: dict[int, list[str]] = {}
    if crew.needs.gpus:
        asked = {b: crew.actor(by_bundle[b]).devices.remote() for b in set(hosts)}
        devices = {bundle: ray.get(ref) for bundle, ref in asked.items()}
    return [
        Seat(
            index=means.workers + index,
            bundle=bundle,
            cpus=0,
            gpus=0,
            memory_bytes=0,
            devices=tuple(devices.get(bundle, ())),
        )
        for index, bundle in enumerate(hosts)
    ]


def spec_of(job: JobConfig, seat: Seat, name: str, host: str, needs: Needs) -> RolloutSpec:
    """What the worker of a seat is told."""
    return RolloutSpec(
        name=name,
        seat=seat.index,
        host=host,
        job=job,
        device="cuda" if seat.gpus or seat.devices else "cpu",
        threads=max(1, int(seat.cpus or needs.cpus)),
        devices=seat.devices,
    )
