"""Faults in a row are what they are said to be."""

import itertools

import pytest

from cluster.drills.series import draw_faults, same_faults


def test_a_seed_draws_the_same_faults() -> None:
    assert draw_faults(30, ranks=2, seed=5) == draw_faults(30, ranks=2, seed=5)
    assert draw_faults(30, ranks=2, seed=5) != draw_faults(30, ranks=2, seed=6)


@pytest.mark.parametrize("seed", range(20))
def test_ten_faults_have_everything_once(seed: int) -> None:
    faults = draw_faults(10, ranks=2, seed=seed)
    assert len(faults) == 10
    moments = [fault.moment for fault in faults]
    assert moments[0] == "before-steps"
    assert moments[-1] == "last-step"
    assert {"training", "recovery", "checkpoint"} <= set(moments)
    assert {kind for fault in faults for kind in fault.kinds} == {"kill", "stop", "slow"}
    assert any(len(fault.kinds) == 2 for fault in faults)


@pytest.mark.parametrize("seed", range(20))
def test_a_fault_during_a_recovery_follows_one_to_recover_from(seed: int) -> None:
    faults = draw_faults(100, ranks=3, seed=seed)
    assert len(faults) == 100
    for before, fault in itertools.pairwise(faults):
        if fault.moment == "recovery":
            assert before.ends_ranks
        assert len(set(fault.ranks)) == len(fault.kinds)
        assert all(0 <= rank < 3 for rank in fault.ranks)


def test_faults_of_one_kind() -> None:
    faults = same_faults(20, "slow", ranks=2, seed=0)
    assert {fault.kinds for fault in faults} == {("slow",)}
    assert {fault.ranks for fault in faults} == {(0,), (1,)}
    assert not any(fault.ends_ranks for fault in faults)


def test_too_little_for_a_series_is_refused() -> None:
    with pytest.raises(ValueError, match="needs two ranks and two faults, got 1 and 10"):
        draw_faults(10, ranks=1, seed=0)
