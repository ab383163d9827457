"""Advantages against values worked out by hand."""

from math import sqrt

import pytest

from trainer.rl.advantages import centred, entropy_scaled, soft_overlong_penalty, standardised


def test_centred_takes_off_the_mean():
    assert centred([1.0, 0.0, 0.0, 0.0]) == (0.75, -0.25, -0.25, -0.25)


def test_standardised_divides_by_the_sample_standard_deviation():
    # Mean 1/4; squared differences 9/16 + 3/16 = 3/4; over 3: 1/4; root: 1/2.
    assert standardised([1.0, 0.0, 0.0, 0.0]) == pytest.approx((1.5, -0.5, -0.5, -0.5), rel=1e-5)
    assert standardised([3.0, 1.0]) == pytest.approx((1 / sqrt(2), -1 / sqrt(2)), rel=1e-5)


@pytest.mark.parametrize("rewards", [[0.1] * 7, [1e9] * 3, [0.0]])
@pytest.mark.parametrize("of", [centred, standardised])
def test_equal_rewards_give_exactly_zero(of, rewards):
    assert of(rewards) == (0.0,) * len(rewards)


@pytest.mark.parametrize("of", [centred, standardised])
def test_advantages_add_up_to_zero_in_any_order(of):
    rewards = [0.3, 0.9, 0.1, 0.5, 0.5]
    assert sum(of(rewards)) == pytest.approx(0.0, abs=1e-12)
    assert sorted(of(rewards)) == pytest.approx(sorted(of(rewards[::-1])), abs=1e-15)


def test_disagreement_lowers_advantages():
    rewards = [1.0, 0.0, 0.0, 0.0]
    sure = entropy_scaled(rewards, [0, 0, 0, 0], scale=0.5)
    unsure = entropy_scaled(rewards, [0, 1, 2, 3], scale=0.5)
    assert sure == centred(rewards)
    assert unsure == pytest.approx([0.5 * a for a in centred(rewards)])


@pytest.mark.parametrize("bad", [[], [1.0, float("nan")], [float("inf"), 0.0]])
def test_rewards_that_failed_are_refused(bad):
    with pytest.raises(ValueError, match="leave out groups whose reward failed"):
        standardised(bad)


@pytest.mark.parametrize(
    ("tokens", "penalty"), [(0, 0.0), (80, 0.0), (85, -0.25), (90, -0.5), (100, -1.0), (120, -1.0)]
)
def test_soft_overlong_penalty(tokens, penalty):
    assert soft_overlong_penalty(tokens, max_tokens=100, cache_tokens=20) == penalty


def test_a_cache_longer_than_the_response_is_refused():
    with pytest.raises(ValueError, match="cache_tokens=200"):
        soft_overlong_penalty(1, max_tokens=100, cache_tokens=200)
