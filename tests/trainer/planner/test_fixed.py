"""The guarantees of the plan, of the fixed planner and of the codec."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel.layout import Layout
from tests.trainer.planner.planners import COST, HARDWARE
from trainer.planner.batch import BatchArithmetic
from trainer.planner.codec import decode_plan, encode_plan
from trainer.planner.fixed import FixedPlanner, assign
from trainer.planner.plan import Terms


def _planner(world_size: int, sequences: int = 8) -> FixedPlanner:
    return FixedPlanner(
        layout=Layout(replica=world_size),
        arithmetic=_arithmetic(world_size, sequences),
        activation="keep",
        model=COST,
        hardware=HARDWARE,
    )


def _arithmetic(world_size: int, sequences: int, per_device: int = 2) -> BatchArithmetic:
    return BatchArithmetic(
        global_batch_tokens=8 * sequences,
        seq_len=8,
        max_tokens_per_device=8 * per_device,
        data_ranks=world_size,
    )


@given(world=st.integers(1, 7), sequences=st.integers(1, 40), per_device=st.integers(1, 5))
def test_every_sequence_is_dealt_once_and_nobody_is_overloaded(world, sequences, per_device):
    arithmetic = _arithmetic(world, sequences, per_device)
    rounds = assign([8] * sequences, arithmetic)
    assert len(rounds) == arithmetic.rounds
    dealt = [i for r in rounds for g in r.groups for i in g.sequences]
    assert sorted(dealt) == list(range(sequences))
    counts = [sum(len(r.sequences_of(rank)) for r in rounds) for rank in range(world)]
    assert max(counts) - min(counts) <= 1
    for r in rounds:
        ranks = [rank for g in r.groups for rank in g.ranks]
        assert len(ranks) == len(set(ranks))
        assert all(len(g.sequences) <= per_device for g in r.groups)
    busy = sum(len(r.groups) for r in rounds)
    assert arithmetic.idle_slots == arithmetic.rounds * world - busy


def test_the_same_arguments_give_the_same_plan_and_survive_the_codec():
    plan = _planner(3).choose(5, [8] * 7)
    assert plan == _planner(3).choose(5, [8] * 7)
    assert decode_plan(encode_plan(plan)) == plan
    assert plan.predicted.total_s > 0


def test_predictions_approach_a_steady_machine():
    planner = _planner(2)
    truth = Terms(compute_s=0.3, communication_s=0.01, update_s=0.02, bubble_s=0.005, data_s=0.001)
    for step in range(1, 30):
        plan = planner.choose(step, [8] * 8)
        planner.observe(plan, truth)
    predicted = planner.choose(30, [8] * 8).predicted
    assert predicted.compute_s == pytest.approx(truth.compute_s, rel=1e-3)
    assert predicted.total_s == pytest.approx(truth.total_s, rel=1e-2)


def test_plans_made_a_step_ahead_do_not_overshoot():
    planner, truth = _planner(2), Terms(compute_s=1.0, update_s=0.1)
    ahead = [planner.choose(1, [8] * 8), planner.choose(2, [8] * 8)]
    for step in range(3, 15):
        planner.observe(ahead.pop(0), truth)
        ahead.append(planner.choose(step, [8] * 8))
        if step >= 5:
            assert ahead[-1].predicted.compute_s == pytest.approx(1.0)


def test_the_first_step_of_a_process_says_nothing_and_the_second_settles():
    planner = _planner(2)
    plan = planner.choose(1, [8] * 8)
    planner.observe(plan, Terms(compute_s=99.0))
    assert planner.hardware == HARDWARE
    second = planner.choose(2, [8] * 8)
    planner.observe(second, Terms(compute_s=0.3, update_s=0.1))
    assert planner.choose(3, [8] * 8).predicted.compute_s == pytest.approx(0.3)


def test_the_derivation_is_told():
    text = _arithmetic(3, 10).explain()
    assert text == ("80 tokens per step = 10 sequences × 8; 3 ranks × up to 2 sequences → 2 rounds")
    assert _arithmetic(4, 9).explain().endswith("2 rounds, 3 idle rank-rounds")
