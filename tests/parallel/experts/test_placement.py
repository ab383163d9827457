"""What `parallel/experts/placement.py` guarantees."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel.experts.placement import Placement, loan_cost_rows, rank_loads, rebalance


@st.composite
def situations(draw):
    ranks, per_rank = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    experts = ranks * per_rank
    loads = draw(st.lists(st.integers(0, 1000), min_size=experts, max_size=experts))
    slots = draw(st.permutations(range(experts)))
    return [float(load) for load in loads], Placement(tuple(slots), ranks)


def worst(load_E, placement, loan_rows):
    return max(rank_loads(load_E, placement, loan_rows=loan_rows))


@given(situations(), st.sampled_from([0.0, 20.0, 1e9]))
def test_the_most_loaded_rank_never_gets_more_to_do_and_a_change_pays(situation, loan_rows):
    load_E, before = situation
    after = rebalance(load_E, before, loan_rows=loan_rows, min_gain=0.1)
    assert sorted(after.expert_slot) == sorted(before.expert_slot)
    assert after.ranks == before.ranks
    if after != before:
        gain = worst(load_E, before, loan_rows) - worst(load_E, after, loan_rows)
        assert gain > 0.1 * sum(load_E) / before.ranks
    assert after == rebalance(load_E, before, loan_rows=loan_rows, min_gain=0.1)
    if loan_rows == 1e9:
        assert not after.loans


def test_all_rows_are_somebodys():
    placement = Placement((2, 0, 3, 1), 2, loans=((0, 1), (3, 0)))
    assert rank_loads([8.0, 4.0, 2.0, 6.0], placement, loan_rows=0.0) == [2 + 6 + 1, 8 + 2 + 1]
    costs = rank_loads([8.0, 4.0, 2.0, 6.0], placement, loan_rows=1.0)
    assert costs == [9 + 2, 11 + 2]


def test_experts_that_are_hot_together_are_parted():
    before = Placement.initial(4, 2)
    after = rebalance([10.0, 10.0, 1.0, 1.0], before, loan_rows=1e9)
    assert rank_loads([10.0, 10.0, 1.0, 1.0], after, loan_rows=0.0) == [11.0, 11.0]


def test_an_expert_that_is_more_than_a_fair_share_is_lent_while_loans_are_cheap():
    load_E, before = [90.0, 2.0, 2.0, 2.0], Placement.initial(4, 4)
    after = rebalance(load_E, before, loan_rows=1.0)
    assert {slot for slot, _ in after.loans} == {0}
    assert worst(load_E, after, 1.0) < 40.0
    assert not rebalance(load_E, before, loan_rows=100.0).loans


def test_two_hot_experts_are_lent_alike():
    load_E = [90.0, 90.0, 2.0, 2.0]
    after = rebalance(load_E, Placement.initial(4, 4), loan_rows=1.0)
    assert {slot for slot, _ in after.loans} == {0, 1}
    assert worst(load_E, after, 1.0) < 55.0


def test_loans_end_when_the_heat_is_over():
    lent = rebalance([90.0, 2.0, 2.0, 2.0], Placement.initial(4, 4), loan_rows=4.0)
    assert lent.loans
    cool = rebalance([10.0, 10.0, 10.0, 10.0], lent, loan_rows=4.0)
    assert not cool.loans


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"expert_slot": (0, 0, 1, 2)}, "no place of their own"),
        ({"ranks": 3}, "3 ranks do not divide 4 experts"),
        ({"loans": ((0, 0),)}, "ascending"),
        ({"loans": ((3, 0), (0, 1))}, "ascending"),
        ({"loans": ((0, 1), (0, 1))}, "without repetition"),
    ],
)
def test_placements_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(Placement.initial(4, 2), **changes)


def test_one_load_per_expert():
    with pytest.raises(ValueError, match="3 loads for 4 experts"):
        rebalance([1.0, 2.0, 3.0], Placement.initial(4, 2), loan_rows=0.0)


def test_a_loan_costs_the_rows_of_the_time_it_takes():
    rows = loan_cost_rows(
        expert_bytes=2_000_000, expert_parameters=1_000_000, link_bytes_per_s=1e9, flops_per_s=6e9
    )
    assert abs(rows - 4.0) < 1e-9  # 4 ms of sending, a row per ms
