"""What an asynchronous checkpoint every ten steps costs in step time.

    python benchmarks/checkpointing.py [--recipe quickstart] [--rounds 9] [--steps 10] [--json]

Two ranks train; stretches of ten steps with one checkpoint at their beginning and stretches without
take turns, so that a stretch holds the whole of a save: staging, writing, checksums, renaming,
pruning, and the probe batch. The peer is torch's own `dcp.async_save` of the same tensors.
"""

import statistics
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from harness import Result, options
from two_ranks import on_two_ranks, opened_job, stepper, timed

from comms.groups import side_group
from trainer.config import JobConfig
from trainer.job import Job
from trainer.state import tensors_of

KINDS = ("none", "braid", "dcp")


class DcpSaver:
    """The same tensors through torch's own asynchronous save."""

    def __init__(self, job: Job, folder: str) -> None:
        self._tensors = tensors_of(job.assembly.weights, job.assembly.optimizer)
        self._path = Path(folder) / "dcp"
        self._group = side_group()
        self._pending: Future[Any] | None = None

    def save(self) -> None:
        """Begin a save."""
        self._pending = dcp.async_save(  # type: ignore[assignment]
            self._tensors, checkpoint_id=self._path, process_group=self._group
        )

    def wait(self) -> None:
        """Until it is on disk."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None


def measure(rank: int, port: int, config: JobConfig, rounds: int, steps: int, out: str) -> None:
    """One rank: stretches with and without a checkpoint; rank 0 writes their seconds."""
    with opened_job(rank, port, config) as (job, _):
        step, peer = stepper(job), DcpSaver(job, config.run.dir)
        begin: dict[str, Callable[[], None]] = {
            "none": lambda: None,
            "braid": lambda: job.saver.save_if_due(job.progress.step, by_time=True),
            "dcp": peer.save,
        }
        times: dict[str, list[float]] = {kind: [] for kind in KINDS}
        timed(step, 3)
        for number in range(rounds + 1):
            for kind in KINDS[number % 3 :] + KINDS[: number % 3]:
                saving = timed(begin[kind], 1)
                seconds = sum(saving) + sum(timed(step, steps))
                peer.wait()
                # The first round is left out: it plans the saves, which happens once per run.
                if number > 0:
                    times[kind].append(seconds)
        job.saver.finish(job.progress.step)
        if rank == 0:
            torch.save(times, out)


def run(recipe: str, *, rounds: int, steps: int) -> Result:
    """Measure and sum up."""
    times = on_two_ranks(measure, recipe, rounds, steps)
    result = Result(name="checkpointing")
    result.braid = {"stretch_s": statistics.median(times["braid"])}
    result.peers = {kind: {"stretch_s": statistics.median(times[kind])} for kind in ("none", "dcp")}
    result.ratio("braid/none", times["braid"], times["none"])
    result.ratio("dcp/none", times["dcp"], times["none"])
    # The machine's noise is larger than what is looked for; the fastest stretches show it best.
    for kind in ("braid", "dcp"):
        result.ratio(f"{kind}/none fastest", [min(times[kind])], [min(times["none"])])
    return result


if __name__ == "__main__":
    given = options(__doc__, recipe="quickstart", steps=10, rounds=9)
    run(given.recipe, steps=given.steps, rounds=given.rounds).show(as_json=given.json)
