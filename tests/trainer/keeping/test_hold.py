"""The guarantees of trainer/keeping/hold.py."""

import random

import torch

from tests.trainer.keeping.shares import RUN, mixed_state
from trainer.checkpoint.share import plan_share
from trainer.keeping.folder import (
    check_share,
    install_share,
    list_shares,
    read_share,
    remove_copies,
    remove_older,
)
from trainer.keeping.hold import RESERVED_SLOTS, Hold, Rotation, read_hold, write_hold
from trainer.keeping.loose import Loose
from trainer.keeping.reading import OpenShare
from trainer.keeping.slot import Owner
from trainer.keeping.snapshots import Snapshots


def test_the_last_snapshot_and_the_kept_step_are_never_written_over():
    draws = random.Random(5)
    for _ in range(50):
        rotation = Rotation(2, RESERVED_SLOTS)
        hold, last = Hold(), None
        for step in range(1, 200):
            if draws.random() < 0.2:
                hold = Hold(step + draws.randrange(4), hold.kept)
            slot = rotation.next(step, hold)
            assert slot != last
            last = slot
            if step == hold.wanted and slot >= 2:
                reached = step
                if draws.random() < 0.5:
                    hold = Hold(hold.wanted, reached)
            if hold.kept > 0:
                assert hold.kept in rotation.steps


def test_without_a_wish_or_slots_for_it_the_ordinary_slots_take_turns():
    for reserved, hold in ((RESERVED_SLOTS, Hold()), (0, Hold(wanted=3, kept=1))):
        rotation = Rotation(2, reserved)
        assert [rotation.next(step, hold) for step in range(1, 6)] == [0, 1, 0, 1, 0]


def test_what_is_written_is_read(tmp_path):
    assert read_hold(tmp_path) == Hold()
    write_hold(tmp_path, Hold(7, 3))
    assert read_hold(tmp_path) == Hold(7, 3)
    (tmp_path / "hold").write_text("7")
    assert read_hold(tmp_path) == Hold()


def test_a_held_step_stays_in_memory_while_others_pass(tmp_path):
    state = mixed_state(0)
    owner = Owner(run=RUN, generation=1, rank=0, ranks=1)
    snapshots = Snapshots(
        tmp_path, owner, plan_share(state, None), slots=2, meta={"step": 0}, replicated=True
    )
    write_hold(tmp_path, Hold(wanted=4))
    for step in range(1, 12):
        snapshots.capture(step, mixed_state(step), {"step": step})
        snapshots.settle()
    snapshots.close()
    assert snapshots.failure is None
    assert sorted(share.header.step for share in list_shares(tmp_path)) == [4, 10, 11]
    remove_older(tmp_path, 2, but=4)
    remove_copies(tmp_path, but=99)
    assert [share.header.step for share in list_shares(tmp_path)] == [4]
    remove_older(tmp_path, 2)
    assert list_shares(tmp_path) == []


def test_what_was_not_sent_at_a_held_step_travels_with_it(tmp_path):
    state = mixed_state(0)
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir(mode=0o700)
    owner = Owner(run=RUN, generation=1, rank=0, ranks=1)
    snapshots = Snapshots(
        here,
        owner,
        plan_share(state, None),
        slots=2,
        meta={"step": 0},
        reserve_bytes=1000,
        replicated=True,
    )
    write_hold(here, Hold(wanted=3))
    unsent = {step: torch.full((100 * step,), float(step)) for step in range(1, 9)}
    for step, tensor in unsent.items():
        loose = Loose(marks=step, tensors=lambda tensor=tensor: {"unsent": tensor})
        snapshots.capture(step, mixed_state(step), {"step": step}, loose=loose)
        snapshots.settle()
    snapshots.close()
    assert snapshots.failure is None
    (held,) = [share for share in list_shares(here) if share.header.step == 3]
    copy = install_share(there, read_share(held.path))
    share = OpenShare(copy, check_share(copy))
    assert torch.equal(share.block("unsent"), unsent[3])
    assert torch.equal(share.block("large"), mixed_state(3)["large"])
