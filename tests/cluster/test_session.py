"""A driver that is killed: its ranks end by themselves, and the same command goes on, from memory
or, where that is gone as well, from what was saved to disk meanwhile."""

import os
import shutil
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

from trainer.errors import ExitCode
from trainer.run_folder import RunFolder, read_lines

ROOT = Path(__file__).resolve().parents[2]
STEPS = 150
ENDED_WITHIN_S = 30.0


def start(folder: Path) -> "subprocess.Popen[bytes]":
    words = [
        *(sys.executable, "-m", "recipes.cli", "run", "debug_cpu"),
        f"cluster.address={ray.get_runtime_context().gcs_address}",
        *(f"run.dir={folder}", "run.name=run", f"data.cache_dir={folder}/cache"),
        *(f"train.steps={STEPS}", "checkpoint.interval_steps=120", f"keep.dir={folder}"),
        "recovery.rescue_after_s=0.5",
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


def told(folder: RunFolder, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_lines(folder.events) if event["kind"] == kind]


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
    wait_for(lambda: len(read_lines(folder.metrics)) >= 5, "five steps", 120)
    (started,) = told(folder, "ranks_started")
    processes = [rank["process"] for rank in started["ranks"]]
    # A rank that stands still cannot notice anything by itself.
    os.kill(processes[1], signal.SIGSTOP)
    driver.kill()
    driver.wait()
    first = len(read_lines(folder.metrics))
    wait_for(lambda: not any(map(alive, processes)), "ranks without a driver", ENDED_WITHIN_S)
    wait_for(lambda: told(folder, "snapshots_rescued"), "snapshots on disk", ENDED_WITHIN_S)
    # The host has lost its memory, and the second driver is killed as well.
    for kept in tmp_path.glob("braid-*"):
        shutil.rmtree(kept)
    driver = start(tmp_path)
    wait_for(lambda: len(told(folder, "resumed")) == 1, "a driver that goes on", 120)
    wait_for(lambda: len(read_lines(folder.metrics)) >= first + 20, "more steps", 120)
    driver.kill()
    driver.wait()
    second = len(read_lines(folder.metrics))
    driver = start(tmp_path)
    try:
        code = driver.wait(200)
    finally:
        driver.kill()
        driver.wait()
    assert code == ExitCode.DONE, (tmp_path / "driver.log").read_text()
    assert [line["step"] for line in read_lines(folder.metrics)] == list(range(1, STEPS + 1))
    from_disk, from_memory = told(folder, "resumed")
    assert Path(from_disk["path"]).is_relative_to(folder.rescued)
    assert from_disk["step"] >= first - 1
    assert not Path(from_memory["path"]).is_relative_to(folder.root)
    assert from_memory["step"] >= second - 1
    assert not list(tmp_path.glob("braid-*"))
    assert not folder.rescued.exists()
