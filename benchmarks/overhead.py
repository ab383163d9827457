"""What Braid costs over a loop written by hand: same model, same tokens, same two ranks.

    python benchmarks/overhead.py [--recipe quickstart] [--rounds 9] [--steps 6] [--json]

In each of two processes a Braid job and hand-written loops (torch's DDP, and FSDP2 as published)
take turns, a few steps each. Braid runs everything it always runs: planning, prefetching, the
vote, metrics, TensorBoard. The hand-written loops get ready-made tensors and report nothing.
Figures are tokens per second of the fastest and the median step.
"""

import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from harness import Result, options
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from two_ranks import RANKS, on_two_ranks, opened_job, stepper, timed

from recipes.load import load_recipe
from trainer.config import JobConfig
from trainer.data.batch import Batch
from trainer.data.corpus import Corpus
from trainer.data.stream import TokenStream
from trainer.job import Job
from trainer.model.decoder import Decoder
from trainer.model.init import init_weights

PEERS = ("ddp", "fsdp2")


class ReadyMade(NamedTuple):
    """One step's tensors of one rank."""

    batches: tuple[Batch, ...]
    num_targets: int
    """Of the whole step."""


class HandWritten:
    """The loop one would write without a framework."""

    def __init__(self, kind: str, job: Job, works: Sequence[ReadyMade], config: JobConfig) -> None:
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
        self.works = works
        self.max_norm = config.optim.max_grad_norm
        self.next = 0

    def step(self) -> None:
        """Forward, backward, clip, update."""
        work = self.works[self.next % len(self.works)]
        self.next += 1
        for batch in work.batches:
            parts = self.model(batch)
            loss = (parts.loss_sum + parts.aux_sum) * RANKS / work.num_targets
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.max_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()


def measure(rank: int, port: int, config: JobConfig, rounds: int, steps: int, out: str) -> None:
    """One rank: Braid and its peers in turns; rank 0 writes the step times."""
    with opened_job(rank, port, config) as (job, corpus):
        works = ready_made(config, corpus, job)
        runners: dict[str, Callable[[], None]] = {"braid": stepper(job)}
        for kind in PEERS:
            runners[kind] = HandWritten(kind, job, works, config).step
        for runner in runners.values():
            timed(runner, 2)
        times: dict[str, list[list[float]]] = {name: [] for name in runners}
        order = list(runners)
        for number in range(rounds):
            # Rotate, so that nobody always runs after the same neighbour.
            for name in order[number % 3 :] + order[: number % 3]:
                times[name].append(timed(runners[name], steps))
        if rank == 0:
            torch.save(times, out)


def ready_made(config: JobConfig, corpus: Corpus, job: Job) -> list[ReadyMade]:
    """A few steps' tensors, as the peers get them."""
    per_step = config.train.global_batch_tokens // config.data.seq_len
    stream = TokenStream(corpus, config.data, seed=1, sequences_per_step=per_step)
    works = []
    for step in range(1, 5):
        sequences = stream.sequences(step - 1)
        plan = job.planner.choose(step, [s.num_tokens for s in sequences])
        mine = [r.sequences_of(job.environment.rank) for r in plan.rounds]
        works.append(
            ReadyMade(
                batches=tuple(stream.batch([sequences[i] for i in own]) for own in mine),
                num_targets=sum(s.num_targets for s in sequences),
            )
        )
    return works


def run(recipe: str, *, rounds: int, steps: int) -> Result:
    """Measure and sum up."""
    times = on_two_ranks(measure, recipe, rounds, steps)
    tokens = load_recipe(recipe, []).recipe.train.global_batch_tokens
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
