"""What a snapshot in memory after every step costs in step time and in CPU seconds.

    python benchmarks/keeping.py [--recipe quickstart] [--rounds 15] [--steps 10] [--json]

Two ranks train; stretches of ten steps with a snapshot after each and stretches without take turns.
The peer is what one would do by hand: a copy of every tensor into ordinary memory between two
steps, which dies with its process and is checked by nothing.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from harness import Result, options
from two_ranks import on_two_ranks, opened_job, stepper, timed

from trainer.config import JobConfig
from trainer.job import Job
from trainer.keeping.config import KeepingConfig
from trainer.state import live_tensors

KINDS = ("none", "braid", "clone")
MEMORY = "/dev/shm"


class Clones:
    """A copy of this rank's tensors in its own memory."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._copies = {name: t.clone() for name, t in self._tensors().items()}

    def take(self) -> None:
        """Copy all tensors now."""
        for name, tensor in self._tensors().items():
            self._copies[name].copy_(tensor)

    def _tensors(self) -> dict[str, torch.Tensor]:
        return live_tensors(self._job.assembly.weights, self._job.assembly.optimizer)


def measure(rank: int, port: int, config: JobConfig, rounds: int, steps: int, out: str) -> None:
    """One rank: stretches of each kind; rank 0 writes seconds, CPU seconds and waiting."""
    keep = KeepingConfig(interval_steps=1, dir=MEMORY)
    name = f"keeping-{port}"
    config = replace(config, keep=keep, run=replace(config.run, name=name))
    with opened_job(rank, port, config) as (job, _):
        train, clones = stepper(job), Clones(job)
        after: dict[str, Callable[[], None]] = {
            "none": lambda: None,
            "braid": lambda: job.memory.save_if_due(job.progress.step),
            "clone": clones.take,
        }
        seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
        cpu: dict[str, list[float]] = {kind: [] for kind in KINDS}

        def step(kind: str) -> None:
            train()
            after[kind]()

        timed(lambda: step("braid"), 3)
        for number in range(rounds):
            for kind in KINDS[number % 3 :] + KINDS[: number % 3]:
                begin_s = time.process_time()
                seconds[kind].append(sum(timed(lambda kind=kind: step(kind), steps)))
                job.memory.settle()
                cpu[kind].append(time.process_time() - begin_s)
        if rank == 0:
            torch.save({"seconds": seconds, "cpu": cpu}, out)
        job.memory.settle()
        job.memory.finish()


def run(recipe: str, *, rounds: int, steps: int) -> Result:
    """Measure and sum up."""
    found = on_two_ranks(measure, recipe, rounds, steps)
    seconds, cpu = found["seconds"], found["cpu"]
    result = Result(name="keeping")
    result.braid = {
        "step_s": statistics.median(seconds["braid"]) / steps,
        "cpu_s": statistics.median(cpu["braid"]) / steps,
    }
    for kind in ("none", "clone"):
        result.peers[kind] = {
            "step_s": statistics.median(seconds[kind]) / steps,
            "cpu_s": statistics.median(cpu[kind]) / steps,
        }
    for kind in ("braid", "clone"):
        result.ratio(f"{kind}/none step time", seconds[kind], seconds["none"])
        result.ratio(f"{kind}/none CPU time", cpu[kind], cpu["none"])
    return result


if __name__ == "__main__":
    given = options(__doc__, recipe="quickstart", steps=10, rounds=15)
    run(given.recipe, steps=given.steps, rounds=given.rounds).show(as_json=given.json)
