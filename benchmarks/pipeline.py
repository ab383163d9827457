"""A training step of a pipeline against torch.distributed.pipelining: same stages, same order.

    python benchmarks/pipeline.py [--ranks 2] [--microbatches 8] [--rounds 7] [--json]

Both run the same decoder stages over gloo on this machine, in turns, schedule by schedule. The peer
gets microbatches of one size, as it needs them. Figures are seconds of the median step.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from harness import Result, options
from torch import Tensor, nn
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleInterleaved1F1B,
    ScheduleZBVZeroBubble,
)
from torch.distributed.pipelining.schedules import _PipelineSchedule

from comms.config import RankEnvironment
from comms.groups import join, leave
from parallel.pipeline.run import Pipeline
from parallel.pipeline.schedule import PipelineShape
from trainer.data.batch import Batch
from trainer.model.config import Architecture
from trainer.model.init import init_weights
from trainer.model.stage import DecoderStage, DecoderStages
from trainer.model.stage_costs import stage_layers

SHAPES = {"1f1b": 1, "interleaved": 2, "zero_bubble": 2}
"""Schedules, and stages per rank of each."""


class PeerStage(nn.Module):
    """A stage that takes its batches in turn: the peer passes tensors on and nothing else."""

    def __init__(self, stage: DecoderStage, batches: list[Batch], divisor: float) -> None:
        super().__init__()
        self.stage = stage
        self.batches = batches
        self.divisor = divisor
        self.calls = 0

    def forward(self, hidden: Tensor | None = None) -> Tensor:
        """Hidden states, or on the last stage the loss."""
        batch = self.batches[self.calls % len(self.batches)]
        self.calls += 1
        output = self.stage(hidden, batch)
        return output.hidden if output.loss is None else output.loss / self.divisor


def make_batch(tokens: int, vocabulary: int, seed: int) -> Batch:
    """One document of pseudo-random tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, vocabulary, (tokens + 1,), generator=generator)
    return Batch(
        tokens_T=ids[:-1],
        labels_T=ids[1:],
        positions_T=torch.arange(tokens),
        document_ends=(tokens,),
        sequence_ends=(tokens,),
        sequence_tokens=(tokens,),
        sequence_targets=(tokens,),
    )


def peer_step(
    shape: PipelineShape, stages: list[DecoderStage], batches: list[Batch], rank: int
) -> Callable[[], None]:
    """A step of the peer on the same stages."""
    tokens, width = len(batches[0].tokens_T), stages[0].architecture.hidden_size
    hidden = torch.empty(tokens, width, requires_grad=True)
    divisor, cpu = float(tokens * len(batches)), torch.device("cpu")
    made = []
    for number, stage in zip(shape.stages_of(rank), stages, strict=True):
        first, last = number == 0, number == shape.stages - 1
        module = PeerStage(stage, batches, divisor)
        inputs = () if first else (hidden,)
        outputs = torch.empty((), requires_grad=True) if last else hidden
        made.append(
            PipelineStage(module, number, shape.stages, cpu, input_args=inputs, output_args=outputs)
        )
    settings = {"loss_fn": lambda output, _: output, "scale_grads": False}
    schedule: _PipelineSchedule
    if shape.schedule == "1f1b":
        schedule = Schedule1F1B(made[0], len(batches), **settings)
    elif shape.schedule == "interleaved":
        schedule = ScheduleInterleaved1F1B(made, len(batches), **settings)
    else:
        schedule = ScheduleZBVZeroBubble(made, len(batches), **settings)
    target = torch.zeros(len(batches), 1)
    return lambda: schedule.step(target=target, return_outputs=False)


def measure(
    rank: int, ranks: int, port: int, architecture: Architecture, sizes: dict[str, int], out: str
) -> None:
    """One rank: Braid and the peer in turns; rank 0 writes the seconds of each step."""
    torch.set_num_threads(1)
    join(RankEnvironment.on_this_machine(rank, ranks, port), deadline_s=60)
    times: dict[str, dict[str, list[float]]] = {}
    batches = [make_batch(sizes["tokens"], 512, i) for i in range(sizes["microbatches"])]
    for schedule, per_rank in SHAPES.items():
        shape = PipelineShape(schedule=schedule, ranks=ranks, stages_per_rank=per_rank)
        layers = stage_layers(architecture, shape.stages, context_tokens=sizes["tokens"])
        stages = [DecoderStage(architecture, layers[n]) for n in shape.stages_of(rank)]
        init_weights(DecoderStages(stages), 0)
        pipeline = Pipeline(
            stages,
            shape=shape,
            group=dist.group.WORLD,
            hidden_shape=lambda batch: (len(batch.tokens_T), architecture.hidden_size),
        )
        divisor = float(sizes["tokens"] * len(batches))
        steps = {
            "braid": lambda pipeline=pipeline, d=divisor: pipeline.run(batches, divisor=d),
            "torch": peer_step(shape, stages, batches, rank),
        }
        times[schedule] = {name: [] for name in steps}
        for number in range(sizes["rounds"] + 1):
            for name, step in steps.items():
                dist.barrier()
                begin_s = time.perf_counter()
                step()
                dist.barrier()
                if number:
                    times[schedule][name].append(time.perf_counter() - begin_s)
    if rank == 0:
        torch.save(times, out)
    leave()


def main() -> None:
    """Run and show."""
    chosen = options(__doc__, ranks=2, microbatches=8, rounds=7, tokens=512, width=256, layers=8)
    architecture = Architecture(
        vocab_size=512,
        hidden_size=chosen.width,
        num_layers=chosen.layers,
        num_heads=4,
        num_kv_heads=4,
        intermediate_size=3 * chosen.width,
        tie_embeddings=False,
    )
    sizes = {n: vars(chosen)[n] for n in ("microbatches", "rounds", "tokens")}
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "result.pt")
        port = 20_000 + int(time.time()) % 20_000
        torch.multiprocessing.start_processes(
            measure,
            (chosen.ranks, port, architecture, sizes, out),
            nprocs=chosen.ranks,
            start_method="spawn",
        )
        times = torch.load(out, weights_only=True)
    result = Result(name="pipeline")
    for schedule, found in times.items():
        result.braid[f"{schedule}_s"] = statistics.median(found["braid"])
        result.peers.setdefault("torch", {})[f"{schedule}_s"] = statistics.median(found["torch"])
        result.ratio(f"{schedule}_speedup", found["torch"], found["braid"])
    result.show(as_json=chosen.json)


if __name__ == "__main__":
    main()
