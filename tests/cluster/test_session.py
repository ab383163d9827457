"""A driver that is killed: its ranks end by themselves, and the same command goes on."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from cluster.drills.planter import lines
from trainer.errors import ExitCode
from trainer.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
STEPS = 150
ENDED_WITHIN_S = 30.0


def start(folder: Path) -> "subprocess.Popen[bytes]":
    words = [
        *(sys.executable, "-m", "recipes.cli", "run", "debug_cpu"),
        f"cluster.address={ray.get_runtime_context().gcs_address}",
        *(f"run.dir={folder}", "run.name=run", f"data.cache_dir={folder}/cache"),
        *(f"train.steps={STEPS}", "checkpoint.interval_steps=25", f"keep.dir={folder}"),
    ]
    with (folder / "driver.log").open("ab") as log:
        return subprocess.Popen(words, cwd=ROOT, stdout=log, stderr=log)


def wait_for(holds: Callable[[], Any], what: str, limit_s: float) -> None:
    until_s = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < until_s, f"{what}: not within {limit_s:g} s"
        time.sleep(0.02)


def alive(process: int) -> bool:
    return psutil.pid_exists(process) and psutil.Process(process).status() != psutil.STATUS_ZOMBIE


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ranks_end_with_their_driver_and_the_next_one_goes_on(
    local_cluster: None, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "run")
    driver = start(tmp_path)
    wait_for(folder.recipe.exists, "a driver that holds the folder", 60)
    # While a driver lives, a second one is refused.
    second = start(tmp_path)
    assert second.wait(60) == ExitCode.RECIPE
    assert "another driver is running" in (tmp_path / "driver.log").read_text()
    wait_for(lambda: len(lines(folder.metrics)) >= 5, "five steps", 120)
    (started,) = [event for event in lines(folder.events) if event["kind"] == "ranks_started"]
    processes = [rank["process"] for rank in started["ranks"]]
    # A rank that stands still cannot notice anything by itself.
    os.kill(processes[1], signal.SIGSTOP)
    driver.kill()
    driver.wait()
    next_driver = start(tmp_path)
    try:
        wait_for(lambda: not any(map(alive, processes)), "ranks without a driver", ENDED_WITHIN_S)
        code = next_driver.wait(200)
    finally:
        next_driver.kill()
        next_driver.wait()
    assert code == ExitCode.DONE, (tmp_path / "driver.log").read_text()
    assert [line["step"] for line in lines(folder.metrics)] == list(range(1, STEPS + 1))
    (resumed,) = [event for event in lines(folder.events) if event["kind"] == "resumed"]
    assert resumed["place"] == "memory"
    assert not list(tmp_path.glob("braid-*"))
