"""Runs that lose processes go on, and end like an undisturbed one."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.config import ClusterConfig
from cluster.launch import launch
from cluster.recovery.config import RecoveryConfig
from cluster.watchdog.config import WatchdogConfig
from comms.config import CommsConfig, IslandConfig
from parallel.config import ParallelConfig
from tests.jobs import tiny_job
from trainer.checkpoint.config import CheckpointConfig
from trainer.config import JobConfig, RunConfig, TrainConfig
from trainer.errors import ExitCode
from trainer.run_folder import RunFolder

STEPS = 100


def job(tmp_path: Path, name: str) -> JobConfig:
    return tiny_job(
        tmp_path,
        run=RunConfig(name=name, dir=str(tmp_path / "runs")),
        train=TrainConfig(steps=STEPS, global_batch_tokens=8 * 48, max_tokens_per_device=96),
        checkpoint=CheckpointConfig(interval_steps=1),
    )


def losses(folder: RunFolder) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines]


def events(folder: RunFolder, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in folder.events.read_text().splitlines()]
    return [event for event in found if event["kind"] == kind]


def newest_process(folder: RunFolder, rank: int) -> int:
    return int(events(folder, "ranks_started")[-1]["ranks"][rank]["process"])


def when(ready: Callable[[], bool], act: Callable[[], None]) -> threading.Thread:
    """Do something as soon as something holds."""

    def watch() -> None:
        while not ready():
            time.sleep(0.005)
        act()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def idle_process(folder: RunFolder) -> int | None:
    """A process of this test's own cluster that has no rank."""
    started = events(folder, "ranks_started")
    ranks = {rank["process"] for rank in started[-1]["ranks"]} if started else set()
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if child.name().startswith("ray::TrainWorke") and child.pid not in ranks:
                return child.pid
    return None


def run(
    job: JobConfig, view: Any, recovery: RecoveryConfig | None = None, **cluster: Any
) -> ExitCode:
    return launch(
        job,
        ClusterConfig(address="auto", **cluster),
        watchdog=WatchdogConfig(),
        recovery=recovery or RecoveryConfig(),
        origins={},
        recipe_text="run: {}\n",
        view=view,
    )


@pytest.mark.timeout(300)
def test_killed_ranks_are_replaced_and_nothing_is_lost(
    local_cluster: None, tmp_path: Path, view: Any
) -> None:
    whole = job(tmp_path, "whole")
    assert run(whole, view) is ExitCode.DONE
    view.steps.clear()
    broken = job(tmp_path, "broken")
    folder = RunFolder.of(broken.run)

    def kill(rank: int) -> Callable[[], None]:
        return lambda: os.kill(newest_process(folder, rank), signal.SIGKILL)

    def recovered_once() -> bool:
        return folder.events.exists() and bool(events(folder, "recovered"))

    def kill_spare() -> None:
        spare = idle_process(folder)
        assert spare is not None
        os.kill(spare, signal.SIGKILL)

    def spare_missed() -> bool:
        return folder.events.exists() and bool(events(folder, "spare_lost"))

    threads = [
        when(lambda: len(view.steps) >= 2, kill_spare),
        when(spare_missed, kill(1)),
        when(recovered_once, kill(0)),
    ]
    assert run(broken, view, spares=1) is ExitCode.DONE
    for thread in threads:
        thread.join()
    assert losses(folder) == losses(RunFolder.of(whole.run))
    assert len(events(folder, "spare_lost")) == 1
    assert [event["rank"] for event in events(folder, "worker_lost")] == [1, 0]
    recovered = events(folder, "recovered")
    assert len(recovered) == 2
    assert all(event["lost_steps"] <= 1 for event in recovered)


@pytest.mark.timeout(180)
def test_islands_go_on_without_one_that_is_lost(
    local_cluster: None, tmp_path: Path, view: Any
) -> None:
    island = IslandConfig(every=4, overlap_steps=1, fragments=2)
    config = replace(
        job(tmp_path, "islands"),
        parallel=ParallelConfig(island=2),
        comms=CommsConfig(island=island),
        checkpoint=CheckpointConfig(interval_steps=0),
    )
    folder = RunFolder.of(config.run)
    thread = when(
        lambda: len(view.steps) >= 2, lambda: os.kill(newest_process(folder, 0), signal.SIGKILL)
    )
    # Nothing is waited for that could take its place.
    assert run(config, view, RecoveryConfig(replace_within_s=0.01)) is ExitCode.DONE
    thread.join()
    assert [step for step, _ in losses(folder)] == [*range(1, STEPS + 1)]
    (changed,) = events(folder, "layout_changed")
    assert (changed["ranks_before"], changed["ranks"]) == (2, 1)
    (left,) = events(folder, "islands_changed")
    assert (left["before"], left["now"], left["islands"], left["joined"]) == (2, 1, [1], [])
    (recovered,) = events(folder, "recovered")
    # Lines of steps come late where there are several islands.
    assert recovered["lost_steps"] <= 1
    (resumed,) = events(folder, "resumed")
    assert resumed["place"] == "memory"
