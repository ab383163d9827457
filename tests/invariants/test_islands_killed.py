"""Invariant 3 with islands and with compressed replicas: what a kill costs is a step."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from comms.compression.config import ReplicaConfig
from comms.config import CommsConfig, IslandConfig
from parallel.config import ParallelConfig
from tests.built import built, take_steps
from tests.jobs import tiny_job, train_on_ranks, train_until_killed
from tests.left import events, losses
from tests.ranks import run_on_ranks
from trainer.config import JobConfig, TrainConfig
from trainer.job import Job
from trainer.keeping.config import KeepingConfig
from trainer.keeping.folder import install_share, list_shares, read_share
from trainer.keeping.hold import Hold, write_hold
from trainer.loop import publish_rest, train
from trainer.run_folder import RunFolder
from trainer.snapshot_opening import folder_of

STEPS = 26
TRAIN = TrainConfig(steps=STEPS, global_batch_tokens=8 * 48, max_tokens_per_device=96)
ISLAND = IslandConfig(every=4, overlap_steps=1, fragments=2, mixing=0.25)


def _two_islands(folder: Path, steps: int = STEPS, **exchange: Any) -> JobConfig:
    return tiny_job(
        folder,
        train=replace(TRAIN, steps=steps),
        parallel=ParallelConfig(island=2),
        comms=CommsConfig(island=replace(ISLAND, **exchange)),
    )


def _whole(config: JobConfig) -> JobConfig:
    return replace(config, run=replace(config.run, name="whole"))


@pytest.mark.timeout(240)
@pytest.mark.parametrize("method", ["econtrol", "powersgd"])
def test_what_replicas_have_not_sent_outlives_them(tmp_path, method):
    replica = ReplicaConfig(method=method, dense_below=100)
    config = tiny_job(
        tmp_path,
        train=TRAIN,
        parallel=ParallelConfig(replica=2),
        comms=CommsConfig(replica=replica),
    )
    train_on_ranks(_whole(config), 2)
    reported = [train_until_killed(config, 2, step=step) for step in (2, 9)]
    outcome, _ = train_on_ranks(config, 2)
    assert outcome.step == STEPS
    resumed = events(config, "resumed")
    assert [event["place"] for event in resumed] == ["memory"] * 2
    for event, last in zip(resumed, reported, strict=True):
        assert last - 1 <= event["step"] <= last
    assert not events(config, "compression_reset")
    assert not events(config, "snapshots_off")
    assert losses(config) == losses(_whole(config))


@pytest.mark.timeout(240)
def test_islands_that_are_killed_go_on_from_their_own_steps(tmp_path):
    config = _two_islands(tmp_path, shares=(1, 3))
    train_on_ranks(_whole(config), 2)
    reported = [train_until_killed(config, 2, step=step) for step in (2, 6, 11, 15)]
    outcome, _ = train_on_ranks(config, 2)
    assert outcome.step == STEPS
    resumed = events(config, "resumed")
    assert [event["place"] for event in resumed] == ["memory"] * 4
    for event, last in zip(resumed, reported, strict=True):
        # Lines come two steps late.
        assert last <= event["step"] <= last + 3
    assert losses(config) == losses(_whole(config))
    assert not list((tmp_path / "keep").iterdir())


def _fall_behind(job: Job, config: JobConfig, number: int) -> None:
    """Lose the newest snapshot of one island."""
    folder = folder_of(config.keep, RunFolder.of(config.run), number)
    newest = max(list_shares(folder), key=lambda found: found.header.step)
    newest.path.unlink()


def _go_to(job: Job, step: int) -> None:
    """Train up to a step, with snapshots, and wait for the last one."""
    while job.progress.step < step:
        take_steps(job, 1)
        job.memory.save_if_due(job.progress.step)
    job.memory.settle()


def _interrupted(rank: int, config: JobConfig) -> list[tuple[int, int]]:
    """Where both islands went on from, each time one of them had lost its newest snapshot."""
    begun = []
    with built(config, rank, 2, sinks=True) as (job, _):
        _go_to(job, 3)
    for stop in range(4, 12):
        dist.barrier()
        if rank == stop % 2:
            _fall_behind(job, config, rank)
        dist.barrier()
        with built(config, rank, 2, sinks=True) as (job, _):
            steps: list = [None, None]
            dist.all_gather_object(steps, job.progress.step)
            begun.append(tuple(steps))
            # Both are at the same step again.
            _go_to(job, stop)
    with built(config, rank, 2, sinks=True) as (job, _):
        train(job)
    return begun


@pytest.mark.timeout(240)
@pytest.mark.parametrize("overlap_steps", [0, 1])
def test_an_island_behind_hears_what_came_of_an_exchange(tmp_path, overlap_steps):
    config = _two_islands(tmp_path, 14, overlap_steps=overlap_steps)
    train_on_ranks(_whole(config), 2)
    first, second = run_on_ranks(2, _interrupted, config)
    assert (
        first == second == [(s - 2, s - 1) if s % 2 == 0 else (s - 1, s - 2) for s in range(4, 12)]
    )
    assert losses(config) == losses(_whole(config))


def _shared_anew(rank: int, config: JobConfig, anew: JobConfig) -> dict[int, int]:
    """Sequences of this island by step, where shares change after step 6, which one
    island has to do again."""
    found = {}
    for job_config, stop in ((config, 6), (anew, 8)):
        with built(job_config, rank, 2, sinks=True) as (job, reports):
            _go_to(job, stop)
            publish_rest(job)
        found |= {r.step: sum(len(one.sequences_of(0)) for one in r.plan.rounds) for r in reports}
        dist.barrier()
        if rank == 0 and stop == 6:
            _fall_behind(job, config, 0)
        dist.barrier()
    return found


@pytest.mark.timeout(120)
def test_steps_that_some_islands_had_done_are_shared_out_as_they_were(tmp_path):
    config = tiny_job(
        tmp_path,
        train=TRAIN,
        parallel=ParallelConfig(island=2),
        comms=CommsConfig(island=replace(ISLAND, shares=(1, 3))),
    )
    anew = replace(config, comms=CommsConfig(island=replace(ISLAND, shares=(3, 1))))
    first, second = run_on_ranks(2, _shared_anew, config, anew)
    assert first == {**dict.fromkeys(range(1, 7), 2), 7: 6, 8: 6}
    assert second == {**dict.fromkeys(range(1, 7), 6), 7: 2, 8: 2}
    assert [event["step"] for event in events(config, "resumed")] == [5]


def _go_on(rank: int, ranks: int, config: JobConfig, islands: tuple[int, ...], step: int) -> dict:
    """From memory up to a step; where that began, and what was found there."""
    with built(config, rank, ranks, islands=islands, sinks=True) as (job, _):
        assert job.islands is not None
        found = {
            "from": job.progress.step,
            "lr state": next(iter(job.assembly.optimizer.moments().values())).clone(),
            "weights": [p.detach().clone() for p in job.assembly.weights.parameters()],
            "globals": _agreed(job),
        }
        if step == config.train.steps:
            train(job)
        else:
            _go_to(job, step)
        found["left"] = [p.detach().clone() for p in job.assembly.weights.parameters()]
        found["agreed"] = _agreed(job)
    return found


def _agreed(job: Job) -> list[torch.Tensor]:
    assert job.islands is not None
    agreed = job.islands.outer.global_parameters()
    return [agreed[name].clone() for name, _ in job.assembly.weights.named_parameters()]


def _equal(a: list, b: list) -> bool:
    return all(map(torch.equal, a, b))


@pytest.mark.timeout(240)
def test_an_island_is_lost_and_another_comes_back_in_its_place(tmp_path):
    config = _two_islands(tmp_path, 20, wire="fp32", shares=(1, 3))
    _, before = run_on_ranks(2, _go_on, 2, config, (), 7)
    # The other one goes on from where it was, while its own exchange is under way.
    one = CommsConfig(island=config.comms.island.only((1,)))
    fewer = replace(config, parallel=ParallelConfig(island=1), comms=one)
    (alone,) = run_on_ranks(1, _go_on, 1, fewer, (1,), 11)
    assert alone["from"] == 7
    assert _equal(alone["weights"], before["left"])
    assert _equal(alone["globals"], before["agreed"])
    assert not _equal(alone["agreed"], alone["globals"])
    # Who comes back takes what was agreed on.
    joined, there = run_on_ranks(2, _go_on, 2, config, (), 20)
    assert joined["from"] == there["from"] == 11
    assert _equal(there["weights"], alone["left"])
    assert _equal(joined["weights"], there["globals"])
    assert torch.equal(joined["lr state"], there["lr state"])
    assert _equal(joined["agreed"], there["agreed"])
    changed = [(e["step"], e["islands"], e["joined"]) for e in events(config, "islands_changed")]
    assert changed == [(7, [1], []), (11, [0, 1], [0])]
    left_out = events(config, "islands_left_out")
    assert all(event["step"] in (11, 12) for event in left_out)
    found = losses(config)
    assert len(found) == 20
    assert found[-1] < found[0]


def _on_own_hosts(rank: int, config: JobConfig) -> int:
    """Each island on a host of its own; one of them is lost and replaced. The step that this one
    goes on from."""
    memories = [Path(config.keep.dir) / f"host-{number}" for number in range(2)]
    memories[rank].mkdir()
    own = replace(config, keep=KeepingConfig(dir=str(memories[rank]), replica_hosts=1))
    folder = RunFolder.of(config.run)
    with built(own, rank, 2, host=f"host-{rank}", sinks=True) as (job, _):
        write_hold(folder_of(own.keep, folder, rank), Hold(wanted=6))
        _go_to(job, 11)
    dist.barrier()
    there = replace(own.keep, dir=str(memories[1 - rank]))
    for found in list_shares(folder_of(there, folder, 1 - rank)):
        if found.header.step == 6:
            install_share(folder_of(own.keep, folder, 1 - rank), read_share(found.path))
    dist.barrier()
    if rank == 1:
        shutil.rmtree(memories[1])
        memories[1].mkdir()
    with built(own, rank, 2, host=f"host-{rank}", sinks=True) as (job, _):
        begun = job.progress.step
        train(job)
    return begun


@pytest.mark.timeout(240)
def test_an_island_whose_host_is_lost_takes_all_back_to_its_copies(tmp_path):
    config = _two_islands(tmp_path, 18)
    train_on_ranks(_whole(config), 2)
    assert run_on_ranks(2, _on_own_hosts, config) == [6, 6]
    assert not events(config, "islands_changed")
    assert losses(config) == losses(_whole(config))
