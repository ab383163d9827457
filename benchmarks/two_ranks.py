"""A Braid job on two ranks of this machine, for benchmarks that step it themselves."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from comms.config import RankEnvironment
from comms.groups import join, leave
from parallel.config import ParallelConfig
from recipes.load import load_recipe
from trainer.build import build
from trainer.checkpoint.config import CheckpointConfig
from trainer.config import JobConfig
from trainer.data.corpus import Corpus
from trainer.data.tokenizer import prepare_tokenizer
from trainer.job import Job, Listeners
from trainer.keeping.config import KeepingConfig
from trainer.loop import run_step
from trainer.metrics import JsonlSink
from trainer.status import Status
from trainer.tensorboard import TensorBoardSink

RANKS = 2


def job_config(recipe: str, folder: str) -> JobConfig:
    """The recipe's model, data and optimizer, without end and without checkpoints of its own."""
    loaded = load_recipe(recipe, []).recipe
    sections = ("model", "data", "train", "optim", "sched")
    job = JobConfig(
        **{name: vars(loaded)[name] for name in sections},
        run=replace(loaded.run, dir=folder, name="benchmark", resume="never"),
        parallel=ParallelConfig(replica=RANKS, shard=1),
        checkpoint=CheckpointConfig(interval_steps=0, rehearse=False, keep_last=1),
        keep=KeepingConfig(interval_steps=0),
    )
    return replace(job, train=replace(job.train, steps=100_000))


@contextmanager
def opened_job(rank: int, port: int, config: JobConfig) -> Iterator[tuple[Job, Corpus]]:
    """One rank's job, with everything that a run has but Ray."""
    torch.set_num_threads(1)
    environment = RankEnvironment.on_this_machine(rank, RANKS, port)
    tokenizer = prepare_tokenizer(config.data, None)
    folder = Path(config.run.dir)
    listeners = Listeners(
        status=Status(),
        sinks=(
            JsonlSink(folder / "metrics.jsonl", folder / "plans.jsonl"),
            TensorBoardSink(folder / "tensorboard"),
        ),
        on_report=lambda report: None,
        should_stop=lambda: False,
        host_memory_gib=lambda: 0.0,
    )
    with closing(Corpus.open(config.data, tokenizer, background=rank == 0)) as corpus:
        join(environment, deadline_s=60)
        with closing(
            build(config, environment, tokenizer=tokenizer, corpus=corpus, listeners=listeners)
        ) as job:
            yield job, corpus
        leave()


def stepper(job: Job) -> Callable[[], None]:
    """A function that trains the next step, as the loop does."""
    state = {"step": 0, "ended_s": time.perf_counter()}

    def step() -> None:
        state["step"] += 1
        _, state["ended_s"] = run_step(job, int(state["step"]), ended_s=state["ended_s"])

    return step


def timed(step: Callable[[], None], steps: int) -> list[float]:
    """Seconds of each step, all ranks beginning together."""
    dist.barrier()
    seconds = []
    for _ in range(steps):
        begin_s = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begin_s)
    return seconds


def on_two_ranks(body: Callable[..., Any], recipe: str, *arguments: Any) -> Any:
    """`body(rank, port, config, *arguments, out)` on both; what rank 0 saved to `out`."""
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "result.pt")
        port = 20_000 + int(time.time()) % 20_000
        torch.multiprocessing.start_processes(
            body,
            (port, job_config(recipe, folder), *arguments, out),
            nprocs=RANKS,
            start_method="spawn",
        )
        return torch.load(out, weights_only=True)
