"""Whole runs by rewards in which processes are killed: nothing is trained twice and nothing lost.

The ranks and those who sample compute nothing here, so that what is tried out is the driver.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.config import ClusterConfig
from cluster.launch import launch
from cluster.recovery.config import RecoveryConfig
from cluster.watchdog.config import WatchdogConfig
from tests.cluster.rl.payloads import history
from trainer.config import JobConfig, RunConfig, TrainConfig
from trainer.errors import ExitCode
from trainer.rl.config import RlConfig, RolloutConfig
from trainer.run_folder import RunFolder

STEPS, PROMPTS = 20, 3


def job(folder: Path, name: str, **rollout: Any) -> JobConfig:
    return JobConfig(
        run=RunConfig(name=name, dir=str(folder)),
        train=TrainConfig(steps=STEPS),
        rl=RlConfig(
            enabled=True,
            prompts_per_step=PROMPTS,
            samples_per_prompt=2,
            max_staleness=2,
            max_prompt_tokens=8,
        ),
        rollout=RolloutConfig(
            **{"workers": 2, "cpus_per_worker": 0.1, "max_new_tokens": 8} | rollout
        ),
    )


def run(job: JobConfig, view: Any, *, rollout_work: str = "sample") -> ExitCode:
    return launch(
        job,
        ClusterConfig(address="auto", num_workers=1, cpus_per_worker=0.5),
        watchdog=WatchdogConfig(),
        recovery=RecoveryConfig(),
        origins={},
        recipe_text="run: {}\n",
        view=view,
        work="tests.cluster.rl.payloads:train",
        rollout_work=f"tests.cluster.rl.payloads:{rollout_work}",
    )


def events(folder: RunFolder, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in folder.events.read_text().splitlines()]
    return [event for event in found if event["kind"] == kind]


def assert_each_prompt_once(folder: RunFolder) -> None:
    """Of the steps that count, all have their prompts, and no prompt comes twice."""
    found = history(folder)
    assert sorted(found) == list(range(STEPS))
    numbers = [number for groups in found.values() for number in groups]
    assert len(numbers) == len(set(numbers)) == STEPS * PROMPTS
    assert sorted(numbers) == list(range(STEPS * PROMPTS))


def process_of(folder: RunFolder, log: str) -> int:
    """The newest one that wrote so to this log."""
    lines = (folder.root / "logs" / log).read_text().splitlines()
    return int(
        [line for line in lines if ", process " in line][-1].split(", process ")[1].split(",")[0]
    )


def when(ready: Callable[[], bool], act: Callable[[], None]) -> threading.Thread:
    def watch() -> None:
        while not ready():
            time.sleep(0.005)
        act()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def kill(folder: RunFolder, log: str) -> Callable[[], None]:
    return lambda: os.kill(process_of(folder, log), signal.SIGKILL)


@pytest.mark.timeout(120)
def test_killed_workers_and_ranks_cost_no_prompt(
    local_cluster: None, tmp_path: Path, view: Any
) -> None:
    broken = job(tmp_path, "broken")
    folder = RunFolder.of(broken.run)
    threads = [
        when(lambda: len(history(folder)) >= 4, kill(folder, "rollout-0.log")),
        when(lambda: len(history(folder)) >= 10, kill(folder, "worker-0.log")),
    ]
    assert run(broken, view) is ExitCode.DONE, view.failures
    for thread in threads:
        thread.join()
    assert_each_prompt_once(folder)
    assert [event["worker"] for event in events(folder, "rollout_lost")] == ["rollout-0"]
    assert any("rollout-0 on" in text for text in view.warnings)
    assert len(events(folder, "worker_lost")) == 1
    # Figures of the conductor are those of the steps.
    assert all(0.0 <= record["staleness/max"] <= 2 for record in view.steps)
    assert view.steps[-1]["reward/mean"] == pytest.approx(0.5)


@pytest.mark.timeout(120)
def test_workers_that_cannot_work_end_the_run_with_their_code(
    local_cluster: None, tmp_path: Path, view: Any
) -> None:
    assert run(job(tmp_path, "refused"), view, rollout_work="refuse") is ExitCode.DATA
    assert "questions.jsonl:3" in view.failures[0]["cause"]


@pytest.mark.timeout(120)
def test_more_losses_than_allowed_end_the_run_with_their_story(
    local_cluster: None, tmp_path: Path, view: Any
) -> None:
    lost = job(tmp_path, "lost", max_restarts=0)
    folder = RunFolder.of(lost.run)
    thread = when(lambda: len(history(folder)) >= 2, kill(folder, "rollout-1.log"))
    assert run(lost, view) is ExitCode.WATCHDOG
    thread.join()
    cause = view.failures[0]["cause"]
    assert "rollout.max_restarts is 0" in cause
    assert events(folder, "failed")[-1]["code"] == ExitCode.WATCHDOG
