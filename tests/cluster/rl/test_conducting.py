"""Whole runs by rewards in which processes are killed: nothing is trained twice and nothing lost.

The ranks and those who sample compute nothing here, so that what is tried out is the driver.
"""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ray

from tests.cluster.rl.driver import PROMPTS, STEPS, job, run
from tests.cluster.rl.payloads import history
from tests.cluster.runs import kill, when
from tests.left import events
from trainer.errors import ExitCode
from trainer.run_folder import RunFolder


def assert_each_prompt_once(folder: RunFolder, steps: int = STEPS) -> None:
    """Of the steps that count, all have their prompts, and no prompt comes twice."""
    found = history(folder)
    assert sorted(found) == list(range(steps))
    numbers = [number for groups in found.values() for number in groups]
    assert len(numbers) == len(set(numbers)) == steps * PROMPTS
    assert sorted(numbers) == list(range(steps * PROMPTS))


@pytest.mark.timeout(120)
def test_killed_workers_and_ranks_cost_no_prompt(
    local_cluster: None, tmp_path: Path, view: Any
) -> None:
    broken = job(tmp_path, "broken")
    folder = RunFolder.of(broken.run)
    threads = [
        when(lambda: len(history(folder)) >= 4, kill(broken, "rollout-0")),
        when(lambda: len(history(folder)) >= 10, kill(broken, 0)),
    ]
    assert run(broken, view) is ExitCode.DONE, view.failures
    for thread in threads:
        thread.join()
    assert_each_prompt_once(folder)
    assert [event["worker"] for event in events(broken, "rollout_lost")] == ["rollout-0"]
    assert any("rollout-0 on" in text for text in view.warnings)
    assert len(events(broken, "worker_lost")) == 1
    # Figures of the conductor are those of the steps.
    assert all(0.0 <= record["staleness/max"] <= 2 for record in view.steps)
    assert view.steps[-1]["reward/mean"] == pytest.approx(0.5)


@pytest.mark.timeout(120)
def test_workers_that_cannot_work_end_the_run_with_their_code(
    local_cluster: None, tmp_path: Path, view: Any
) -> None:
    assert run(job(tmp_path, "refused"), view, rollout_work="payloads:refuse") is ExitCode.DATA
    assert "questions.jsonl:3" in view.failures[0]["cause"]


@pytest.mark.timeout(120)
def test_more_losses_than_allowed_end_the_run_with_their_story(
    local_cluster: None, tmp_path: Path, view: Any
) -> None:
    lost = job(tmp_path, "lost", max_restarts=0)
    folder = RunFolder.of(lost.run)
    thread = when(lambda: len(history(folder)) >= 2, kill(lost, "rollout-1"))
    assert run(lost, view) is ExitCode.WATCHDOG
    thread.join()
    cause = view.failures[0]["cause"]
    assert "rollout.max_restarts is 0" in cause
    assert events(lost, "failed")[-1]["code"] == ExitCode.WATCHDOG


@pytest.mark.timeout(180)
def test_a_killed_driver_goes_on_where_its_ledger_was(local_cluster: None, tmp_path: Path) -> None:
    killed = job(tmp_path, "killed")
    folder = RunFolder.of(killed.run)
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-m", "tests.cluster.rl.driver", str(tmp_path), address]
    with (tmp_path / "driver.log").open("wb") as log:
        first = subprocess.Popen(command, stdout=log, stderr=log)
        while len(history(folder)) < 8:
            time.sleep(0.01)
            assert first.poll() is None
        first.kill()
        first.wait()
        assert subprocess.run(command, stdout=log, stderr=log, check=False).returncode == 0
    assert_each_prompt_once(folder)
    assert len(events(killed, "ranks_started")) == 2
    assert events(killed, "ledger_restarted") == []
