"""Which entries of a vector to send.

Guarantees, each asserted in tests/comms/compression/test_selection.py:
- exactly `count` different indices come back, in increasing order, whatever the values are: all
  equal, zero, tied at the threshold, or spread over many magnitudes;
- a value that is left out is never larger than one that is taken;
- the same arguments give the same indices.
"""

import torch
from torch import Tensor

_REFINEMENTS = 10
_LEAST_SAMPLED = 4096
"""Vectors up to this size are ordered exactly: estimating would cost as much."""


def target_count(numel: int, ratio: float) -> int:
    """How many entries to send: at least one."""
    return min(numel, max(1, round(numel * ratio)))


def largest(magnitudes: Tensor, count: int, *, sample_ratio: float, offset: int) -> Tensor:
    """Sorted indices of the `count` largest entries of a non-negative vector without NaN.

    A threshold is estimated from every n-th entry, from `offset` on, set so low that a little too
    much passes, and refined until it does; what passes is then ordered exactly, the hierarchical
    selection of Deep Gradient Compression (arXiv 1712.01887, section 5).
    """
    numel = magnitudes.numel()
    if count >= numel:
        return torch.arange(numel, device=magnitudes.device)
    passed = _passing(magnitudes, count, sample_ratio, offset)
    if passed is None:
        return _exact(magnitudes, count)
    if passed.numel() < count:
        return _filled(passed, count, numel)
    return passed[_exact(magnitudes[passed], count)]


def spread(numel: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` sorted random indices below `numel`: one from each of `count` equal parts."""
    device = generator.device
    edges = torch.arange(count + 1, device=device) * numel // count
    widths = edges.diff()
    draws = torch.rand(count, generator=generator, device=device, dtype=torch.float64)
    return edges[:-1] + (draws * widths).long().minimum(widths - 1)


def _passing(magnitudes: Tensor, count: int, sample_ratio: float, offset: int) -> Tensor | None:
    """Indices of at least the `count` largest entries, fewer where no more are above zero; None
    where sampling does not find a threshold."""
    numel = magnitudes.numel()
    samples = max(_LEAST_SAMPLED, int(sample_ratio * numel), 16 * numel // count)
    stride = (numel // samples) | 1
    if stride < 3:
        return None
    sample = magnitudes[offset % stride :: stride]
    expected = count * sample.numel() / numel
    # Three standard deviations above the expected rank: too little seldom passes.
    rank = int(expected + 3 * expected**0.5 + 2)
    for _ in range(_REFINEMENTS):
        if 4 * rank > sample.numel() and 4 * count < numel:
            return None
        rank = min(rank, sample.numel())
        threshold = sample.topk(rank, sorted=False).values.min()
        passed = _above(magnitudes, threshold)
        if passed.numel() >= count or not threshold > 0:
            return passed
        rank *= 2
    return None


def _above(magnitudes: Tensor, threshold: Tensor) -> Tensor:
    mask = magnitudes >= threshold if threshold > 0 else magnitudes > 0
    return mask.nonzero().flatten()


def _exact(magnitudes: Tensor, count: int) -> Tensor:
    """Sorted indices of the `count` largest; among ties, some."""
    chosen = torch.zeros(magnitudes.numel(), dtype=torch.bool, device=magnitudes.device)
    chosen[magnitudes.topk(count, sorted=False).indices] = True
    return chosen.nonzero().flatten()


def _filled(indices: Tensor, count: int, numel: int) -> Tensor:
    """`indices` and the first others, so that messages have one size."""
    candidates = torch.ones(min(numel, 2 * count), dtype=torch.bool, device=indices.device)
    candidates[indices[indices < candidates.numel()]] = False
    others = candidates.nonzero().flatten()[: count - indices.numel()]
    return torch.cat([indices, others]).sort().values
