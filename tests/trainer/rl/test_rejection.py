"""Rejection sampling: what is kept, how often, and the pairs made of it."""

from math import exp
from random import Random

import pytest

from trainer.rl.rejection import preference_pairs, rejection_sample


def test_none_is_kept_twice_and_as_many_as_wanted():
    rewards = [Random(1).random() for _ in range(64)]
    kept = rejection_sample(rewards, wanted=8, beta=0.5, random=Random(2))
    assert len(kept) == len(set(kept)) == 8


def test_a_small_beta_keeps_the_best():
    rewards = [0.1, 0.9, 0.5, 0.8]
    assert rejection_sample(rewards, wanted=3, beta=1e-3, random=Random(0)) == [1, 3, 2]


def test_a_large_beta_keeps_any():
    kept = rejection_sample([0.1, 0.9, 0.5], wanted=3, beta=1e6, random=Random(0))
    assert kept == [0, 1, 2]


def test_a_candidate_is_kept_with_the_probability_of_its_reward():
    # The best is kept in round one; the other with e^-1, and else is not among the first one.
    beta, rounds = 0.5, 4000
    random = Random(3)
    first = [
        rejection_sample([0.5, 1.0], wanted=1, beta=beta, random=random)[0] for _ in range(rounds)
    ]
    assert first.count(0) / rounds == pytest.approx(exp(-1.0), abs=0.03)


def test_pairs_put_the_higher_reward_first_and_leave_equals_out():
    rewards = [0.0, 1.0, 0.5, 0.5, 0.7]
    assert preference_pairs([0, 1, 2, 3, 4], rewards) == [(1, 0)]
    assert preference_pairs([4, 2, 3, 1], rewards) == [(4, 2), (1, 3)]


@pytest.mark.parametrize(
    ("rewards", "wanted", "beta"), [([1.0], 2, 1.0), ([1.0], 1, 0.0), ([float("nan")], 1, 1.0)]
)
def test_what_cannot_be_sampled_is_refused(rewards, wanted, beta):
    with pytest.raises(ValueError, match=r"candidates|finite"):
        rejection_sample(rewards, wanted=wanted, beta=beta, random=Random(0))
