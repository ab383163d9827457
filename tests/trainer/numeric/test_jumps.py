"""The guarantees of trainer/numeric/jumps.py."""

import random

import pytest

from trainer.numeric.jumps import Rollback, abandoned_by, decode, encode, made_by, steps_left


def test_steps_are_in_order_and_without_what_was_left_out():
    rollback = Rollback(from_step=6, to_step=3)
    assert list(steps_left(0, 10, rollbacks=[rollback], skipped=[9])) == [1, 2, 3, 7, 8, 10]
    assert list(steps_left(4, 6, rollbacks=[rollback], skipped=[])) == []
    assert list(steps_left(6, 8, rollbacks=[rollback], skipped=[])) == [7, 8]


def test_a_state_from_what_was_rolled_back_is_never_gone_on_from():
    rollback = Rollback(from_step=6, to_step=3)
    assert abandoned_by(3, [], [rollback]) is None
    assert abandoned_by(4, [], [rollback]) == rollback
    assert abandoned_by(6, [], [rollback]) == rollback
    assert abandoned_by(6, [rollback], [rollback]) is None
    assert abandoned_by(8, [rollback], [rollback]) is None
    # Gone on from a state of before, the run comes to the same rollback.
    assert made_by(3, [rollback]) == ()
    assert made_by(7, [rollback]) == (rollback,)


@pytest.mark.parametrize("seed", range(30))
def test_a_run_that_starts_anywhere_ends_like_the_one_that_did_not_stop(seed):
    """Weights are the steps they were trained on; states are kept after every step."""
    chance = random.Random(seed)
    trained: list[int] = []
    rollbacks: list[Rollback] = []
    states: list[tuple[int, list[int], tuple[Rollback, ...]]] = [(0, [], ())]
    for step in range(1, 60):
        if chance.random() < 0.08:
            admitted = [s for s in states if abandoned_by(s[0], s[2], rollbacks) is None]
            to_step, kept, _ = chance.choice(admitted)
            trained = list(kept)
            rollbacks.append(Rollback(from_step=step, to_step=to_step))
        else:
            trained.append(step)
        states.append((step, list(trained), made_by(step, rollbacks)))
    for step, weights, made in states:
        if abandoned_by(step, made, rollbacks) is None:
            again = weights + list(steps_left(step, 59, rollbacks=rollbacks, skipped=[]))
            assert again == trained


def test_rollbacks_come_back_from_json():
    rollbacks = (Rollback(from_step=6, to_step=3), Rollback(from_step=9, to_step=6))
    assert decode(encode(rollbacks)) == rollbacks
    with pytest.raises(ValueError, match="no list of rollbacks"):
        decode(3)
