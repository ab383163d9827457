"""Islands in whole runs: the guarantees of trainer/islands/exchange.py, one by one."""

import json
from dataclasses import replace

import pytest

from comms.config import CommsConfig, IslandConfig
from parallel.config import ParallelConfig
from tests.jobs import tiny_job, train_on_ranks
from trainer.checkpoint.config import CheckpointConfig
from trainer.config import OptimConfig, RunConfig, SchedConfig, TrainConfig
from trainer.run_folder import RunFolder

STREAM = CommsConfig(island=IslandConfig(every=4, overlap_steps=1))


def _lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _losses(config) -> list[float]:
    records = _lines(RunFolder.of(config.run).metrics)
    assert [r["step"] for r in records] == list(range(1, len(records) + 1))
    return [r["loss"] for r in records]


def _named(config, name: str):
    return replace(config, run=replace(config.run, name=name))


@pytest.mark.timeout(120)
def test_exchanging_after_every_step_at_once_and_in_full_is_data_parallelism(tmp_path):
    # An epsilon far above every gradient turns AdamW without memory into SGD: only then is the mean
    # of the islands' updates the update of their mean gradient.
    linear = OptimConfig(
        lr=1e3, betas=(0.0, 0.0), eps=1e6, weight_decay=0.0, max_grad_norm=1e9
    )
    config = tiny_job(tmp_path, optim=linear, sched=SchedConfig(name="constant", warmup_steps=0))
    whole = _named(config, "whole")
    islands = replace(
        config,
        parallel=ParallelConfig(island=2),
        comms=CommsConfig(island=IslandConfig(method="local_sgd", every=1)),
    )
    train_on_ranks(whole, 1)
    _, reports = train_on_ranks(islands, 2)
    wanted = _losses(whole)
    assert wanted[-1] < wanted[0] - 1e-3
    assert _losses(islands) == pytest.approx(wanted, rel=1e-5)
    assert reports[-1].tokens == 6 * 8 * 48
