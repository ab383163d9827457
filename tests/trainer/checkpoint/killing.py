"""Kill a saving process before every change it makes to the folder, and see what is left.

Run by test_folder.py in a process of its own, because it forks. Prints one JSON line: the number of
kills, and what was wrong after them.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tests.trainer.checkpoint.worlds import whole_state, zeros_like
from trainer.checkpoint.checkpointer import Checkpointer
from trainer.checkpoint.folder import read_latest
from trainer.checkpoint.loading import load
from trainer.checkpoint.resume import find_checkpoints

EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir"}


def save(directory: Path, *steps: int, size: int = 1) -> None:
    """Save the state of each step in turn, keeping two."""
    saver = Checkpointer(directory, keep_last=2, group=None, blocking=True)
    for step in steps:
        state = {**whole_state(step), "large": torch.full((size,), float(step))}
        saver.save(step, state, {"step": step})
        assert [outcome.error for outcome in saver.wait()] == [None]
    saver.close()


def count_or_kill(directory: Path, at: int | None, tally: Path) -> None:
    """Watch this process touch `directory`: count, or die just before the event numbered `at`."""
    seen = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in EVENTS and str(directory) in str(arguments[0]):
            if at is None:
                seen += 1
                tally.write_bytes(b"." * seen)
            elif seen == at:
                os.kill(os.getpid(), signal.SIGKILL)
            else:
                seen += 1

    sys.addaudithook(watch)


def in_child(work: Callable[[], None], kill_after_s: float | None = None) -> bool:
    """Do `work` in a fork; whether it lived to its end."""
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == 0


def problems_of(directory: Path, next_step: int, size: int = 1) -> list[str]:
    """What a run that starts again now would find wrong. Step 2 was complete before."""
    problems = []
    for candidates in (find_checkpoints(directory), (read_latest(directory),)):
        if None in candidates or not candidates:
            problems.append(f"nothing to load: {candidates}")
            continue
        state = {**zeros_like(whole_state(0)), "large": torch.zeros(size)}
        loaded = load(state, candidates, None)  # type: ignore[arg-type]
        expected = {**whole_state(loaded.step), "large": torch.full((size,), float(loaded.step))}
        if loaded.step < 2 or loaded.skipped:
            problems.append(f"loaded {loaded.step}, skipped {loaded.skipped}")
        if any(not torch.equal(state[name], expected[name]) for name in expected):
            problems.append(f"step {loaded.step} has other contents")
    save(directory, next_step, size=size)
    left = {entry.name for entry in directory.iterdir()}
    if len(left) != 3 or not left >= {"latest", f"step-{next_step:08d}"}:
        problems.append(f"left over: {sorted(left)}")
    return problems


def kill_at_every_event(base: Path) -> tuple[int, list[str]]:
    """Save step 3, step 4 and step 4 again over steps 1 and 2; die at each event of it."""
    before, directory = base / "before", base / "checkpoints"
    save(before, 1, 2)
    tally = base / "tally"

    def work(at: int | None) -> None:
        count_or_kill(directory, at, tally)
        save(directory, 3, 4, 4)

    shutil.copytree(before, directory)
    assert in_child(partial(work, None))
    events = len(tally.read_bytes())
    problems = []
    for at in range(events):
        shutil.rmtree(directory)
        shutil.copytree(before, directory)
        if in_child(partial(work, at)):
            problems.append(f"not killed at {at}")
        problems += [f"event {at}: {problem}" for problem in problems_of(directory, 5)]
    return events, problems


def kill_at_random(base: Path, kills: int) -> tuple[int, list[str]]:
    """Die at random moments of saves that mostly write data."""
    directory, size = base / "random", 1_000_000
    save(directory, 1, 2, size=size)
    delays, problems = random.Random(0), []
    for kill in range(kills):
        steps = range(100 * kill + 100, 100 * kill + 190)
        in_child(partial(save, directory, *steps, size=size), delays.uniform(0.0, 0.15))
        found = problems_of(directory, steps.stop, size)
        problems += [f"kill {kill}: {problem}" for problem in found]
    return kills, problems


if __name__ == "__main__":
    torch.set_num_threads(1)
    every = kill_at_every_event(Path(sys.argv[1]))
    random_moments = kill_at_random(Path(sys.argv[1]), int(sys.argv[2]))
    found = {"every": every, "random": random_moments}
    sys.stdout.write(json.dumps(found) + "\n")
