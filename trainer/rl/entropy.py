"""How much the answers of a group disagree in meaning. Pure Python.

Semantic entropy (Kuhn et al., arXiv 2302.09664) as SEED-GRPO (2505.12346) uses it: answers that
mean the same form a cluster; the more clusters, and the more even, the less sure the model is.

Guarantees, each asserted in tests/trainer/rl/test_entropy.py:
- it is 0 where all answers agree, and log(samples), the largest value, where none do;
- answers that no answer was found in agree with nothing;
- the scale of advantages is 1 at entropy 0 and never rises with it.
"""

from collections.abc import Hashable, Sequence
from math import exp, fsum, log
from typing import Literal

Shape = Literal["linear", "exponential", "focal"]


def answer_clusters(answers: Sequence[Hashable | None]) -> tuple[int, ...]:
    """The cluster of each answer, numbered by first appearance. None is an answer of its own."""
    clusters: list[int] = []
    known: dict[Hashable, int] = {}
    for answer in answers:
        number = len(known)
        # A tuple of the place: no two missing answers are the same.
        key = (len(clusters),) if answer is None else ("answer", answer)
        clusters.append(known.setdefault(key, number))
    return tuple(clusters)


def semantic_entropy(clusters: Sequence[int], *, log_probs: Sequence[float] | None = None) -> float:
    """-(1/K) sum of log p over the K clusters, in nats.

    p is a cluster's share of the samples, or of their probabilities where `log_probs` holds a
    log-probability per token (the mean over the answer: sums would favour short answers).
    """
    if not clusters:
        raise ValueError("semantic entropy of no answers; pass the clusters of at least one")
    weights = _weights(log_probs) if log_probs is not None else [1.0] * len(clusters)
    total = fsum(weights)
    shares = [
        fsum(w for w, found in zip(weights, clusters, strict=True) if found == cluster) / total
        for cluster in sorted(set(clusters))
    ]
    return max(0.0, -fsum(log(max(share, 1e-300)) for share in shares) / len(shares))


def entropy_scale(
    clusters: Sequence[int],
    *,
    scale: float,
    shape: Shape = "linear",
    log_probs: Sequence[float] | None = None,
) -> float:
    """Factor in [0, 1] on the group's advantages; x is the entropy over its largest value.

    `linear` is 1 - scale x, `exponential` e^(-scale x), `focal` (1 - x)^scale.
    """
    if len(clusters) < 2:
        return 1.0
    entropy = semantic_entropy(clusters, log_probs=log_probs)
    share = min(1.0, entropy / log(len(clusters)))
    if shape == "exponential":
        return exp(-scale * share)
    if shape == "focal":
        return (1.0 - share) ** scale
    return max(0.0, 1.0 - scale * share)


def _weights(log_probs: Sequence[float]) -> list[float]:
    highest = max(log_probs)
    return [exp(log_prob - highest) for log_prob in log_probs]
