"""Preference pairs by statistical rejection sampling (RSO, arXiv 2309.06657). Pure Python.

Candidates sampled from the reference policy are kept with the probability that makes the kept ones
samples of the best policy under the reward: pi(y) ~ reference(y) e^(reward(y) / beta).

Guarantees, each asserted in tests/trainer/rl/test_rejection.py:
- no candidate is kept twice, and as many are kept as were asked for;
- the best candidate that is left is always kept; a small beta keeps the best ones, a large one
  any;
- in a pair the first reward is the higher one; equals make no pair.
"""

from collections.abc import Sequence
from math import exp, isfinite
from random import Random


def rejection_sample(
    rewards: Sequence[float], *, wanted: int, beta: float, random: Random
) -> list[int]:
    """Indices of `wanted` candidates, in the order in which they were kept (algorithm 1).

    A round keeps candidate i where u < e^((reward_i - highest reward left) / beta), u uniform in
    [0, 1), and rounds go on without the kept ones. Raises ValueError where there are too few.
    """
    if not 0 <= wanted <= len(rewards):
        raise ValueError(
            f"wanted={wanted} of {len(rewards)} candidates; sample at least as many as are kept"
        )
    if not beta > 0.0 or not all(map(isfinite, rewards)):
        raise ValueError(f"beta={beta} must be positive and the rewards {list(rewards)} finite")
    kept: list[int] = []
    left = list(range(len(rewards)))
    while len(kept) < wanted:
        highest = max(rewards[i] for i in left)
        chosen = [i for i in left if random.random() < exp((rewards[i] - highest) / beta)]
        kept += chosen
        left = [i for i in left if i not in chosen]
    return kept[:wanted]


def preference_pairs(kept: Sequence[int], rewards: Sequence[float]) -> list[tuple[int, int]]:
    """(chosen, rejected) of neighbours in `kept`: first-round ranking (section 3.2)."""
    pairs = []
    for left, right in zip(kept[::2], kept[1::2], strict=False):
        if rewards[left] > rewards[right]:
            pairs.append((left, right))
        elif rewards[right] > rewards[left]:
            pairs.append((right, left))
    return pairs
