"""Recipes trained in many layouts, in as few processes as there are numbers of ranks."""

from collections.abc import Sequence
from dataclasses import replace

import torch.distributed as dist

from recipes.invariance import Comparison, Variant, largest_difference
from tests.built import built, take_steps
from tests.ranks import run_on_ranks
from trainer.checkpoint.config import CheckpointConfig
from trainer.config import JobConfig
from trainer.keeping.config import KeepingConfig


def compare_side_by_side(
    job: JobConfig, variants: Sequence[Variant], *, steps: int
) -> list[Comparison]:
    """As `recipes.invariance.compare` does it, whose processes train one variant each."""
    spread = [_spread(job, variant, number) for number, variant in enumerate(variants)]
    trained: dict[int, list[tuple[float, float]]] = {}
    for ranks in sorted({variant.ranks for variant in variants}):
        mine = [number for number, variant in enumerate(variants) if variant.ranks == ranks]
        rows = run_on_ranks(ranks, _train, [spread[number] for number in mine], steps)[0]
        trained.update(zip(mine, rows, strict=True))
    reference = [loss for loss, _ in trained[0]]
    comparisons = []
    for number, variant in enumerate(variants):
        losses, norms = zip(*trained[number], strict=True)
        comparisons.append(
            Comparison(
                variant=variant,
                losses=losses,
                grad_norms=norms,
                largest_difference=largest_difference(losses, reference),
            )
        )
    return comparisons


def _spread(job: JobConfig, variant: Variant, number: int) -> JobConfig:
    data_ranks = variant.replica * variant.shard
    tokens = job.train.global_batch_tokens // (data_ranks * variant.rounds)
    return replace(
        job,
        run=replace(job.run, name=f"variant{number}", resume="never"),
        train=replace(job.train, max_tokens_per_device=tokens, precision="fp32"),
        parallel=variant.parallel,
        checkpoint=CheckpointConfig(interval_steps=0, rehearse=False),
        keep=KeepingConfig(interval_steps=0),
    )


def _train(rank: int, jobs: list[JobConfig], steps: int) -> list[list[tuple[float, float]]]:
    found = []
    for config in jobs:
        with built(config, rank, dist.get_world_size()) as (job, reports):
            take_steps(job, steps)
        found.append([(report.loss, report.grad_norm) for report in reports])
    return found
