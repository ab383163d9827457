"""Islands in whole runs: the guarantees of trainer/islands/exchange.py, one by one."""

import pickle
import time
from contextlib import closing
from dataclasses import replace

import pytest
import torch

from comms.compression.config import ReplicaConfig
from comms.config import CommsConfig, IslandConfig, RankEnvironment
from parallel.config import ParallelConfig
from tests.built import built, take_steps
from tests.jobs import start_ranks, start_until_step, tiny_job, train_on_ranks
from tests.left import events, losses, metrics
from tests.processes import collect
from tests.ranks import run_on_ranks
from trainer.build import build
from trainer.config import JobConfig, OptimConfig, RunConfig, SchedConfig, TrainConfig
from trainer.data.corpus import Corpus
from trainer.data.tokenizer import prepare_tokenizer
from trainer.errors import InfrastructureError, RecipeError
from trainer.job import Listeners
from trainer.loop import publish_rest, run_step
from trainer.metrics import JsonlSink
from trainer.run_folder import RunFolder, read_lines
from trainer.status import Status

STREAM = CommsConfig(island=IslandConfig(every=3, overlap_steps=2, fragments=1))
"""The model leaves after steps 3 and 6, and is merged after steps 5 and 8."""


def _named(config, name: str, **run):
    return replace(config, run=replace(config.run, name=name, **run))


def _streaming(folder, **changes) -> JobConfig:
    sections = {
        "parallel": ParallelConfig(island=2),
        "comms": STREAM,
        "train": TrainConfig(steps=9, global_batch_tokens=8 * 48, max_tokens_per_device=96),
    }
    return tiny_job(folder, **{**sections, **changes})


@pytest.mark.timeout(120)
def test_exchanging_after_every_step_at_once_and_in_full_is_data_parallelism(tmp_path):
    # An epsilon far above every gradient turns AdamW without memory into SGD: only then is the mean
    # of the islands' updates the update of their mean gradient.
    linear = OptimConfig(lr=1e5, betas=(0.0, 0.0), eps=1e6, weight_decay=0.0, max_grad_norm=1e9)
    config = tiny_job(tmp_path, optim=linear, sched=SchedConfig(name="constant", warmup_steps=0))
    moe = replace(config.model.moe, bias_update_rate=0.0)
    config = replace(config, model=replace(config.model, moe=moe))
    whole = _named(config, "whole")
    islands = replace(
        config,
        parallel=ParallelConfig(island=2),
        comms=CommsConfig(island=IslandConfig(method="local_sgd", every=1)),
    )
    train_on_ranks(whole, 1)
    _, reports = train_on_ranks(islands, 2)
    wanted = losses(whole)
    assert wanted[-1] < wanted[0] - 0.1
    assert losses(islands) == pytest.approx(wanted, rel=1e-5)
    assert [r.tokens for r in reports] == [r["tokens"] for r in metrics(whole)]

    # So are islands of unequal shares, of which the smaller has fewer rounds.
    unequal = replace(islands.comms.island, shares=(2, 1))
    shared = _named(replace(islands, comms=CommsConfig(island=unequal)), "shared")
    found = collect(*start_ranks(shared, 2))
    assert losses(shared) == pytest.approx(wanted, rel=1e-5)
    for rounds, sequences, (_, reports) in zip((3, 2), (5, 3), found, strict=True):
        for report in reports:
            dealt = [len(r.sequences_of(0)) for r in report.plan.rounds]
            assert (len(dealt), sum(dealt)) == (rounds, sequences)


@pytest.mark.timeout(240)
def test_a_run_that_stops_in_mid_exchange_goes_on_bitwise_and_on_other_islands(tmp_path):
    whole = _named(_streaming(tmp_path), "whole")
    _, reports = train_on_ranks(whole, 2)
    plans = read_lines(RunFolder.of(whole.run).plans)
    outer = [plan["outer"] for plan in plans]
    assert [o["sends"] for o in outer] == [None, None, 0] * 3
    assert [o["merges"] for o in outer] == [None] * 4 + [0, None, None, 0, None]
    for plan, planned in zip(plans, outer, strict=True):
        assert plan["bytes"].get("island/all_gather", 0) == planned["sent_bytes"]
    assert reports[2].islands.sent_bytes > outer[2]["sent_bytes"] > 0
    assert max(r.islands.loss_gap for r in reports) > 0

    broken = _streaming(tmp_path)
    outcome, _ = train_on_ranks(broken, 2, stop_after=1)
    # All islands hear of it two steps later.
    assert (outcome.kind, outcome.step) == ("stopped", 3)
    stopped = str(RunFolder.of(broken.run).checkpoints / "step-00000003")
    outcome, _ = train_on_ranks(broken, 2)
    assert outcome.step == 9
    assert losses(broken) == losses(whole)

    # Whoever is alone goes on from what all had agreed on, and others from the one who was alone.
    alone = replace(
        _named(broken, "alone", resume=stopped), parallel=ParallelConfig(), comms=CommsConfig()
    )
    outcome, _ = train_on_ranks(alone, 1)
    assert outcome.step == 9
    changed = events(alone, "islands_changed")
    assert [(e["step"], e["before"], e["now"]) for e in changed] == [(3, 2, 1)]
    assert metrics(alone)[-1]["loss"] == pytest.approx(losses(whole)[-1], rel=0.05)
    spread = _named(
        replace(broken, train=replace(broken.train, steps=10)), "spread", resume=outcome.checkpoint
    )
    outcome, reports = train_on_ranks(spread, 2)
    assert (outcome.step, reports[-1].plan.outer.merges) == (10, None)
    assert [e["now"] for e in events(spread, "islands_changed")] == [2]
    other = replace(
        broken,
        train=replace(broken.train, steps=12),
        comms=CommsConfig(island=IslandConfig(every=4, overlap_steps=2, fragments=1)),
    )
    with pytest.raises(RecipeError, match="every: 3 in the checkpoint, 4 now"):
        train_on_ranks(other, 2)


def _poisoned(rank: int, config: JobConfig) -> tuple[list[bool], int]:
    """Whether each step was made, where the weights of rank 1 are not finite in the second; and the
    updates that a resumed optimizer knows of."""
    folder = RunFolder.of(config.run)
    tokenizer = prepare_tokenizer(config.data, None)
    listeners = Listeners(
        status=Status(),
        sinks=(JsonlSink(folder.metrics, folder.plans),),
        on_report=lambda report: None,
        should_stop=lambda: False,
        host_memory_gib=lambda: 0.0,
    )
    environment = RankEnvironment.on_this_machine(rank, 2, 0)
    commits = []
    with closing(Corpus.open(config.data, tokenizer, background=rank == 0)) as corpus:
        corpus.begin(config.run.seed)
        parts = {"tokenizer": tokenizer, "corpus": corpus, "listeners": listeners}
        with closing(build(config, environment, **parts)) as job:
            weight = next(job.assembly.weights.parameters()).data
            for step in range(1, 7):
                kept = weight.clone()
                if step == 2 and rank == 1:
                    weight.fill_(torch.nan)
                verdict, _ = run_step(job, step, ended_s=time.perf_counter())
                commits.append(verdict.commit)
                if step == 2 and rank == 1:
                    weight.copy_(kept)
            publish_rest(job)
            job.saver.finish(6)
        with closing(build(config, environment, **parts)) as job:
            return commits, job.assembly.optimizer.updates


@pytest.mark.timeout(120)
def test_a_step_that_is_not_finite_is_skipped_on_its_own_island_alone(tmp_path):
    config = _streaming(tmp_path)
    found = run_on_ranks(2, _poisoned, config)
    assert found == [([True] * 6, 6), ([True, False, *[True] * 4], 5)]
    skipped = [r["skipped"] for r in metrics(config)]
    assert skipped == [False, True, False, False, False, False]
    assert [(e["island"], e["step"]) for e in events(config, "numeric_fault")] == [(1, 2)]


def _uneven(rank: int, config: JobConfig) -> None:
    with built(config, rank, 2) as (job, _):
        assert job.islands is not None
        for _ in range(config.train.steps):
            take_steps(job, 1)
            # As if the second island had taken twice as long.
            job.islands.busy_s = 1.0 + rank
        publish_rest(job)


@pytest.mark.timeout(120)
def test_shares_that_would_be_faster_are_told(tmp_path):
    train = TrainConfig(steps=26, global_batch_tokens=8 * 48, max_tokens_per_device=96)
    config = _streaming(tmp_path, train=train)
    run_on_ranks(2, _uneven, config)
    (event,) = events(config, "islands_uneven")
    assert (event["step_s"], event["shares"]) == ([1.0, 2.0], [2.0, 1.0])
    assert event["advice"].startswith("with comms.island.shares=[2.0, 1.0] steps would be 1.33 ")


@pytest.mark.timeout(120)
def test_an_island_that_is_lost_is_named(tmp_path):
    train = TrainConfig(steps=5000, global_batch_tokens=8 * 48, max_tokens_per_device=96)
    config = _streaming(tmp_path, train=train, run=RunConfig(name="lost", dir=str(tmp_path / "r")))
    workers, results = start_until_step(config, 2, 3)
    workers[1].kill()
    rank, payload = results.get()
    error = pickle.loads(payload)
    assert rank == 0
    assert isinstance(error, InfrastructureError)
    assert "island 0 lost island 1 (ranks 1 to 1)" in str(error)


@pytest.mark.timeout(240)
def test_islands_train_alike_however_their_ranks_share_the_model(tmp_path):
    island = replace(STREAM.island, wire="fp32", mixing=0.25, shares=(2, 1))
    train = TrainConfig(steps=12, global_batch_tokens=8 * 48, max_tokens_per_device=96)
    config = _streaming(tmp_path, comms=CommsConfig(island=island), train=train)
    moe = replace(config.model.moe, num_experts=4)
    config = replace(config, model=replace(config.model, moe=moe))
    whole = _named(config, "whole")
    train_on_ranks(whole, 2)
    layouts = [
        ParallelConfig(island=2, shard=2, ep=2),
        ParallelConfig(island=2, pp=2),
        ParallelConfig(island=2, tp=2),
        ParallelConfig(island=2, shard=2, shard_weights=1, sp=2),
    ]
    for number, layout in enumerate(layouts, start=1):
        moved = replace(config, parallel=layout)
        outcome, reports = train_on_ranks(moved, 4, stop_after=1)
        assert outcome.step == 3 * number
        assert set(reports[-1].plan.rounds[0].group_of(0).ranks) <= {0, 1}
    assert losses(config) == pytest.approx(losses(whole), rel=2e-5)


@pytest.mark.timeout(240)
def test_what_replicas_of_an_island_have_not_sent_goes_on_with_it(tmp_path):
    compressed = ReplicaConfig(method="econtrol", ratio=0.05, dense_below=100)
    config = _streaming(
        tmp_path,
        parallel=ParallelConfig(island=2, replica=2),
        comms=replace(STREAM, replica=compressed),
    )
    whole = _named(config, "whole")
    _, reports = train_on_ranks(whole, 4)
    for report in reports:
        assert report.exchanged.sent_bytes == report.plan.replica_bytes
    assert reports[-1].exchanged.error_norm > 0
    assert reports[-1].loss < reports[0].loss
    assert train_on_ranks(config, 4, stop_after=1)[0].step == 3
    assert train_on_ranks(config, 4)[0].step == 9
    assert losses(config) == losses(whole)
    assert not events(config, "compression_reset")
    assert not events(config, "snapshots_off")

    # One island of as many replicas goes on with what the first one had not sent.
    stopped = str(RunFolder.of(whole.run).checkpoints / "step-00000009")
    alone = replace(
        _named(config, "alone", resume=stopped),
        parallel=ParallelConfig(replica=2),
        comms=CommsConfig(replica=compressed),
        train=replace(config.train, steps=10),
    )
    outcome, (report,) = train_on_ranks(alone, 2)
    assert outcome.step == 10
    assert report.exchanged.error_norm > 0
    resets = [e["cause"] for e in events(alone, "compression_reset")]
    assert all("begin again" in cause for cause in resets)
