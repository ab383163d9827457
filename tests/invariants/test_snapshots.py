"""Invariant 3 from memory: a killed run goes on from its last step, not from a checkpoint."""

import shutil
from dataclasses import replace

import pytest

from cluster.drills.faults import flip_bytes
from offload.config import OffloadConfig
from parallel.config import ParallelConfig
from tests.jobs import tiny_job, train_on_ranks, train_until_killed
from tests.left import events, losses
from trainer.config import TrainConfig
from trainer.errors import RecipeError, ResourceError
from trainer.keeping.config import KeepingConfig
from trainer.keeping.folder import list_shares
from trainer.run_folder import RunFolder

STEPS = 26
TRAIN = TrainConfig(steps=STEPS, global_batch_tokens=8 * 48, max_tokens_per_device=96)


@pytest.mark.timeout(240)
def test_a_killed_run_goes_on_from_memory_with_the_same_losses(tmp_path):
    config = tiny_job(tmp_path, train=TRAIN)
    whole = replace(config, run=replace(config.run, name="whole"))
    _, undisturbed = train_on_ranks(whole, 2)
    wanted = losses(whole)
    assert not list((tmp_path / "keep").iterdir())

    reported = [train_until_killed(config, 2, step=3)]
    offloaded = replace(config, offload=OffloadConfig(optimizer="host"))
    reported.append(train_until_killed(offloaded, 2, step=9))
    reported.append(train_until_killed(config, 2, step=15))
    left, _ = train_on_ranks(config, 2, leave_after=2)
    assert left.kind == "regrouped"
    reported.append(left.step)
    moved = replace(config, parallel=ParallelConfig(shard=3))
    outcome, reports = train_on_ranks(moved, 3)

    assert outcome.step == STEPS
    assert reports[-1].tokens == undisturbed[-1].tokens
    resumed = events(config, "resumed")
    assert [event["place"] for event in resumed] == ["memory"] * 4
    assert resumed[-1]["step"] == left.step
    for event, last in zip(resumed, reported, strict=True):
        assert last - 1 <= event["step"] <= last
    kept = resumed[-1]["step"]
    assert losses(config)[:kept] == wanted[:kept]
    assert losses(config) == pytest.approx(wanted, rel=1e-5)
    assert not list((tmp_path / "keep").iterdir())


@pytest.mark.timeout(120)
def test_a_damaged_snapshot_leads_to_the_step_before_and_is_told(tmp_path):
    config = tiny_job(tmp_path, train=TRAIN)
    whole = replace(config, run=replace(config.run, name="whole"))
    train_on_ranks(whole, 1)
    left, _ = train_on_ranks(config, 1, leave_after=6)
    assert left.kind == "regrouped"
    shares = {
        share.header.step: share.path
        for folder in (tmp_path / "keep").iterdir()
        for share in list_shares(folder)
    }
    newest = max(shares)
    flip_bytes(shares[newest])
    train_on_ranks(config, 1)
    (resumed,) = events(config, "resumed")
    assert (resumed["step"], resumed["place"]) == (newest - 1, "memory")
    (skipped,) = events(config, "checkpoint_skipped")
    assert "checksum" in skipped["cause"]
    assert losses(config) == losses(whole)


@pytest.mark.timeout(120)
def test_memory_does_not_outlive_its_run(tmp_path):
    config = tiny_job(tmp_path, train=TRAIN)
    train_until_killed(config, 1, step=3)
    assert list((tmp_path / "keep").iterdir())
    shutil.rmtree(RunFolder.of(config.run).root)
    train_until_killed(config, 1, step=3)
    assert events(config, "resumed") == []
    # Without snapshots the run goes on from its first checkpoint, and what memory held is gone.
    off = replace(config, keep=replace(config.keep, interval_steps=0))
    train_on_ranks(off, 1, stop_after=2)
    assert [(e["step"], e["place"]) for e in events(config, "resumed")] == [(0, "disk")]
    assert not list((tmp_path / "keep").iterdir())


@pytest.mark.timeout(120)
def test_snapshots_that_cannot_be_are_off_or_refused(tmp_path):
    nowhere = str(tmp_path / "nowhere")
    auto = tiny_job(tmp_path, keep=KeepingConfig(dir=nowhere))
    train_on_ranks(auto, 1, stop_after=1)
    (event,) = events(auto, "snapshots_off")
    assert "cannot be used" in event["cause"]
    wanted = KeepingConfig(interval_steps=2, dir=nowhere)
    with pytest.raises(ResourceError, match=r"keep\.dir=.*nowhere cannot be used"):
        train_on_ranks(replace(auto, keep=wanted), 1)
    disk = OffloadConfig(optimizer="disk", disk=(str(tmp_path / "scratch"),), disk_depth=1)
    with pytest.raises(RecipeError, match="optimizer states are on disk"):
        train_on_ranks(tiny_job(tmp_path, keep=replace(wanted, dir="/tmp"), offload=disk), 1)
