"""What Braid costs over a loop written by hand: same model, same tokens, same two ranks.

    python benchmarks/overhead.py [--recipe quickstart] [--rounds 9] [--steps 6] [--json]

In each of two processes a Braid job and hand-written loops (torch's DDP, and FSDP2 as published)
take turns, a few steps each. Braid runs everything it always runs: planning, prefetching, the
vote, metrics, TensorBoard. The hand-written loops get ready-made tensors and report nothing.
Figures are tokens per second of the fastest and the median step.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from harness import Result, options
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from comms.config import RankEnvironment
from comms.groups import join, leave
from parallel.config import ParallelConfig
from recipes.load import load_recipe
from trainer.build import build
from trainer.config import CheckpointConfig, JobConfig
from trainer.data.batch import Batch
from trainer.data.corpus import Corpus
from trainer.data.stream import TokenStream
from trainer.data.tokenizer import prepare_tokenizer
from trainer.feed import StepWork
from trainer.job import Job, Listeners
from trainer.loop import run_step
from trainer.metrics import JsonlSink
from trainer.model.decoder import Decoder
from trainer.model.init import init_weights
from trainer.status import Status
from trainer.tensorboard import TensorBoardSink

RANKS = 2
PEERS = ("ddp", "fsdp2")


class HandWritten:
    """The loop one would write without a framework."""

    def __init__(self, kind: str, job: Job, batches: Sequence[StepWork], config: JobConfig) -> None:
        with torch.device("cpu"):
            model = Decoder(job.assembly.architecture)
        init_weights(model, 0)
        if kind == "ddp":
            self.model: torch.nn.Module = DistributedDataParallel(model)
        else:
            for block in model.layers:
                fully_shard(block)
            self.model = fully_shard(model)
        self.parameters = list(self.model.parameters())
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=1e-4, betas=config.optim.betas, fused=True
        )
        self.batches = batches
        self.max_norm = config.optim.max_grad_norm
        self.next = 0

    def step(self) -> None:
        """Forward, backward, clip, update."""
        work = self.batches[self.next % len(self.batches)]
        self.next += 1
        for batch in work.batches:
            parts = self.model(batch)
            loss = (parts.loss_sum + parts.aux_sum) * RANKS / work.num_targets
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.max_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()


def timed(step: Callable[[], None], steps: int) -> list[float]:
    """Seconds of each step, all ranks beginning together."""
    dist.barrier()
    seconds = []
    for _ in range(steps):
        begin_s = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begin_s)
    return seconds


def measure(rank: int, port: int, config: JobConfig, rounds: int, steps: int, out: str) -> None:
    """One rank: Braid and its peers in turns; rank 0 writes the step times."""
    torch.set_num_threads(1)
    environment = RankEnvironment.on_this_machine(rank, RANKS, port)
    tokenizer = prepare_tokenizer(config.data, None)
    with closing(Corpus.open(config.data, tokenizer, background=rank == 0)) as corpus:
        join(environment, deadline_s=60)
        job = build(
            config,
            environment,
            tokenizer=tokenizer,
            corpus=corpus,
            listeners=_listeners(Path(out).parent),
        )
        with closing(job):
            times = _alternate(job, config, _ready_made(config, corpus, job), rounds, steps)
        if rank == 0:
            torch.save(times, out)
        leave()


def _listeners(folder: Path) -> Listeners:
    return Listeners(
        status=Status(),
        sinks=(
            JsonlSink(folder / "metrics.jsonl", folder / "plans.jsonl"),
            TensorBoardSink(folder / "tensorboard"),
        ),
        on_report=lambda report: None,
        should_stop=lambda: False,
        host_memory_gib=lambda: 0.0,
    )


def _ready_made(config: JobConfig, corpus: Corpus, job: Job) -> list[StepWork]:
    """A few steps' tensors, as the peers get them."""
    per_step = config.train.global_batch_tokens // config.data.seq_len
    stream = TokenStream(corpus, config.data, seed=1, sequences_per_step=per_step)
    works = []
    for step in range(1, 5):
        sequences = stream.sequences(step - 1)
        plan = job.planner.choose(step, [s.num_tokens for s in sequences])
        batches: tuple[Batch, ...] = tuple(
            stream.batch([sequences[i] for i in r.sequences_of(job.environment.rank)])
            for r in plan.rounds
        )
        works.append(
            StepWork(
                plan=plan,
                batches=batches,
                num_tokens=sum(s.num_tokens for s in sequences),
                num_targets=sum(s.num_targets for s in sequences),
            )
        )
    return works


def _alternate(
    job: Job, config: JobConfig, works: list[StepWork], rounds: int, steps: int
) -> dict[str, list[list[float]]]:
    peers = {kind: HandWritten(kind, job, works, config) for kind in PEERS}
    state = {"step": 0, "ended_s": time.perf_counter()}

    def braid() -> None:
        state["step"] += 1
        _, state["ended_s"] = run_step(job, int(state["step"]), ended_s=state["ended_s"])

    runners: dict[str, Callable[[], None]] = {
        "braid": braid,
        **{kind: peer.step for kind, peer in peers.items()},
    }
    for runner in runners.values():
        timed(runner, 2)
    times: dict[str, list[list[float]]] = {name: [] for name in runners}
    order = list(runners)
    for number in range(rounds):
        # Rotate, so that nobody always runs after the same neighbour.
        for name in order[number % 3 :] + order[: number % 3]:
            times[name].append(timed(runners[name], steps))
    return times


def _config(recipe: str, folder: str) -> JobConfig:
    loaded = load_recipe(recipe, []).recipe
    job = JobConfig(
        **{f: vars(loaded)[f] for f in ("model", "data", "train", "optim", "sched", "parallel")},
        run=replace(loaded.run, dir=folder, name="overhead", resume="never"),
        checkpoint=CheckpointConfig(interval_steps=0, rehearse=False),
    )
    return replace(
        job,
        train=replace(job.train, steps=100_000),
        parallel=ParallelConfig(replica=RANKS, shard=1),
    )


def run(recipe: str, rounds: int, steps: int) -> Result:
    """Measure and sum up."""
    with tempfile.TemporaryDirectory() as folder:
        config = _config(recipe, folder)
        out = str(Path(folder) / "times.pt")
        port = 20_000 + int(time.time()) % 20_000
        arguments: tuple[Any, ...] = (port, config, rounds, steps, out)
        torch.multiprocessing.start_processes(
            measure, arguments, nprocs=RANKS, start_method="spawn"
        )
        times = torch.load(out, weights_only=True)
    tokens = config.train.global_batch_tokens
    result = Result(name="overhead")
    per_round = {n: [tokens / statistics.median(r) for r in rows] for n, rows in times.items()}
    fastest = {n: tokens / min(s for row in rows for s in row) for n, rows in times.items()}
    for name in times:
        figures = {
            "tokens_per_s": statistics.median(per_round[name]),
            "fastest_tokens_per_s": fastest[name],
        }
        if name == "braid":
            result.braid = figures
        else:
            result.peers[name] = figures
            result.ratio(f"braid/{name}", per_round["braid"], per_round[name])
            result.ratio(f"braid/{name} fastest step", [fastest["braid"]], [fastest[name]])
    return result


if __name__ == "__main__":
    given = options(__doc__, recipe="quickstart", steps=6, rounds=9)
    run(given.recipe, steps=given.steps, rounds=given.rounds).show(as_json=given.json)
