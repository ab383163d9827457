"""Runs that lose processes go on, and end like an undisturbed one."""

import os
import signal
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.config import ClusterConfig
from cluster.recovery.config import RecoveryConfig
from comms.config import CommsConfig, IslandConfig
from parallel.config import ParallelConfig
from tests.cluster.runs import kill, run, when
from tests.jobs import tiny_job, train_on_ranks
from tests.left import events, losses
from trainer.checkpoint.config import CheckpointConfig
from trainer.config import JobConfig, RunConfig, TrainConfig
from trainer.errors import ExitCode

STEPS = 100


def job(tmp_path: Path, name: str, *, checkpoints_every: int = 0) -> JobConfig:
    return tiny_job(
        tmp_path,
        run=RunConfig(name=name, dir=str(tmp_path / "runs")),
        train=TrainConfig(steps=STEPS, global_batch_tokens=8 * 48, max_tokens_per_device=96),
        checkpoint=CheckpointConfig(interval_steps=checkpoints_every),
    )


def idle_process(job: JobConfig) -> int | None:
    """A process of this test's own cluster that has no rank."""
    started = events(job, "ranks_started")
    ranks = {rank["process"] for rank in started[-1]["ranks"]} if started else set()
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if child.name().startswith("ray::TrainWorke") and child.pid not in ranks:
                return child.pid
    return None


@pytest.mark.timeout(300)
def test_killed_ranks_are_replaced_and_nothing_is_lost(
    local_cluster: None, tmp_path: Path, view: Any
) -> None:
    whole = job(tmp_path, "whole")
    train_on_ranks(whole, 2)
    broken = job(tmp_path, "broken", checkpoints_every=1)

    def kill_spare() -> None:
        spare = idle_process(broken)
        assert spare is not None
        os.kill(spare, signal.SIGKILL)

    threads = [
        when(lambda: len(view.steps) >= 2, kill_spare),
        when(lambda: bool(events(broken, "spare_lost")), kill(broken, 1)),
        when(lambda: bool(events(broken, "recovered")), kill(broken, 0)),
    ]
    assert run(broken, view, ClusterConfig(address="auto", spares=1)) is ExitCode.DONE
    for thread in threads:
        thread.join()
    assert losses(broken) == losses(whole)
    assert len(events(broken, "spare_lost")) == 1
    assert [event["rank"] for event in events(broken, "worker_lost")] == [1, 0]
    recovered = events(broken, "recovered")
    assert len(recovered) == 2
    assert all(event["lost_steps"] <= 1 for event in recovered)


@pytest.mark.timeout(180)
def test_islands_go_on_without_one_that_is_lost(
    local_cluster: None, tmp_path: Path, view: Any
) -> None:
    island = IslandConfig(every=4, overlap_steps=1, fragments=2, shares=(2, 1))
    config = replace(
        job(tmp_path, "islands"),
        parallel=ParallelConfig(island=2),
        comms=CommsConfig(island=island),
    )
    thread = when(lambda: len(view.steps) >= 2, kill(config, 0))
    # Nothing is waited for that could take its place.
    assert run(config, view, recovery=RecoveryConfig(replace_within_s=0.01)) is ExitCode.DONE
    thread.join()
    assert len(losses(config)) == STEPS
    (changed,) = events(config, "layout_changed")
    assert (changed["ranks_before"], changed["ranks"]) == (2, 1)
    (left,) = events(config, "islands_changed")
    assert (left["before"], left["now"], left["islands"], left["joined"]) == (2, 1, [1], [])
    (recovered,) = events(config, "recovered")
    # Lines of steps come late where there are several islands.
    assert recovered["lost_steps"] <= 1
    (resumed,) = events(config, "resumed")
    assert resumed["place"] == "memory"
