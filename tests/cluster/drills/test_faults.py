"""Faults do what they say to a process of our own."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cluster.drills.faults import FAULTS, Target, flip_bytes
from trainer.run_folder import RunFolder


@pytest.fixture
def target(tmp_path: Path) -> Target:
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield Target(
        rank=1,
        host="here",
        process=sleeper.pid,
        folder=RunFolder(tmp_path),
        driver=sleeper.pid,
    )
    sleeper.kill()
    sleeper.wait()


def await_status(process: int, wanted: str) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if psutil.Process(process).status() == wanted:
            return True
        time.sleep(0.005)
    return False


@pytest.mark.parametrize("name", ["kill-worker", "kill-controller"])
def test_killed(target: Target, name: str) -> None:
    FAULTS[name]().plant(target)
    assert await_status(target.process, psutil.STATUS_ZOMBIE)


def test_stopped(target: Target) -> None:
    FAULTS["hang-worker"]().plant(target)
    assert await_status(target.process, psutil.STATUS_STOPPED)


def test_slowed_and_let_go(target: Target) -> None:
    fault = FAULTS["slow-worker"]()
    fault.plant(target)
    assert await_status(target.process, psutil.STATUS_STOPPED)
    assert await_status(target.process, psutil.STATUS_SLEEPING)
    fault.remove()
    assert psutil.Process(target.process).status() != psutil.STATUS_STOPPED


def test_the_newest_checkpoint_is_changed(target: Target) -> None:
    for step in (1, 2):
        folder = target.folder.checkpoints / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")
        (folder / "rank-0.safetensors").write_bytes(bytes(1000))
    FAULTS["corrupt-checkpoint"]().plant(target)
    old, new = (target.folder.checkpoints / f"step-{n:08d}/rank-0.safetensors" for n in (1, 2))
    assert old.read_bytes() == bytes(1000)
    assert sum(byte != 0 for byte in new.read_bytes()) == 64


def test_flipping_twice_restores(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    flip_bytes(path)
    assert path.read_bytes() != b"abc"
    flip_bytes(path)
    assert path.read_bytes() == b"abc"
