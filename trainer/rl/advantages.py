"""Advantages of a group's samples from their rewards. Pure Python.

A group is the samples of one prompt. Guarantees, each asserted in
tests/trainer/rl/test_advantages.py:
- advantages of a group add up to zero, unless lengths or entropy change the rewards themselves;
- equal rewards give exactly zero, never a division by a vanishing spread;
- they do not depend on the order of the samples.
"""

from collections.abc import Sequence
from math import fsum, isfinite, sqrt

from trainer.rl.entropy import Shape, entropy_scale

SPREAD_FLOOR = 1e-6
"""Added to the standard deviation."""


def centred(rewards: Sequence[float]) -> tuple[float, ...]:
    """Reward minus the group's mean: Dr.GRPO (arXiv 2503.20783), AIPO (2505.24034)."""
    _check(rewards)
    if min(rewards) == max(rewards):
        return (0.0,) * len(rewards)
    mean = fsum(rewards) / len(rewards)
    return tuple(reward - mean for reward in rewards)


def standardised(rewards: Sequence[float]) -> tuple[float, ...]:
    """Centred rewards divided by the group's sample standard deviation: GRPO (arXiv 2402.03300)."""
    differences = centred(rewards)
    if not any(differences):
        return differences
    variance = fsum(difference**2 for difference in differences) / (len(differences) - 1)
    return tuple(difference / (sqrt(variance) + SPREAD_FLOOR) for difference in differences)


def entropy_scaled(
    rewards: Sequence[float],
    clusters: Sequence[int],
    *,
    scale: float,
    shape: Shape = "linear",
    log_probs: Sequence[float] | None = None,
) -> tuple[float, ...]:
    """Centred rewards, smaller where the group's answers disagree: SEED-GRPO (arXiv 2505.12346).

    `clusters` and `log_probs` as in `trainer.rl.entropy`.
    """
    factor = entropy_scale(clusters, scale=scale, shape=shape, log_probs=log_probs)
    return tuple(factor * advantage for advantage in centred(rewards))


def soft_overlong_penalty(tokens: int, *, max_tokens: int, cache_tokens: int) -> float:
    """What to add to the reward of a response of `tokens` tokens: from 0 down to -1.

    DAPO (arXiv 2503.14476, eq. 13): 0 up to max_tokens - cache_tokens, then falling linearly to -1
    at max_tokens, the limit of generation.
    """
    if not 0 < cache_tokens <= max_tokens:
        raise ValueError(
            f"cache_tokens={cache_tokens} must be in [1, max_tokens={max_tokens}]: it is the end "
            "of the response over which the penalty grows"
        )
    over = tokens - (max_tokens - cache_tokens)
    return -min(1.0, max(0.0, over / cache_tokens))


def _check(rewards: Sequence[float]) -> None:
    bad = [reward for reward in rewards if not isfinite(reward)]
    if bad or not rewards:
        raise ValueError(
            f"rewards {list(rewards)} must be finite and at least one; leave out groups whose "
            "reward failed"
        )
