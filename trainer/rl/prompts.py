"""Prompts that several samples of a stream have in common, trained from one copy of their tokens.

T rows of a stream, E places of its documents written out.

Guarantees, each asserted in tests/trainer/rl/test_prompts.py:
- losses and gradients are those of the stream written out, within rounding;
- only tokens before the first sampled one are shared, and only where they are the same;
- a stream in which nothing is shared stays as it is;
- there are enough units for all ranks, and none is longer than a rank holds.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from trainer.rl.batch import PolicyBatch, input_tokens
from trainer.rl.messages import Sample


def shared_tokens(samples: Sequence[Sample]) -> list[int]:
    """Of the input tokens of each sample, how many of the first ones are those of the first of its
    neighbours with the same prompt. What follows from them was not sampled: they have no labels."""
    counts: list[int] = []
    first: Sample | None = None
    for sample in samples:
        if first is None or first.group != sample.group:
            first = sample
            counts.append(0)
        else:
            counts.append(_in_common(first, sample))
            first = first if counts[-1] else sample
    return counts


def stream_tokens(samples: Sequence[Sample]) -> int:
    """Rows of a stream of these, without padding."""
    return sum(map(input_tokens, samples)) - sum(shared_tokens(samples))


def prompt_units(
    samples: Sequence[Sample], *, least: int, longest_tokens: int
) -> tuple[tuple[int, ...], ...]:
    """Places of samples that are computed together: neighbours with the same prompt, as long as
    that leaves `least` units of about one size, and none is longer than it may be, written out."""
    members = max(1, len(samples) // least)
    units: list[list[int]] = []
    tokens = 0
    for place, (sample, count) in enumerate(zip(samples, shared_tokens(samples), strict=True)):
        tokens += input_tokens(sample)
        if not count or len(units[-1]) == members or tokens > longest_tokens:
            units.append([])
            tokens = input_tokens(sample)
        units[-1].append(place)
    return tuple(map(tuple, units))


def share_prompts(batch: PolicyBatch, samples: Sequence[Sample]) -> PolicyBatch:
    """The stream of these samples with what they share there once.

    `batch` is what `pack_samples` made of them. The documents stay as they are; `rows_E` says which
    row is at each of their places.
    """
    counts = shared_tokens(samples)
    if not any(counts):
        return batch
    assert not batch.stretches, "only a whole stream has all of its prompts"
    kept_E = np.ones(len(batch.tokens_T), dtype=np.bool_)
    origin_E = np.arange(len(kept_E))
    start = first = 0
    for sample, count in zip(samples, counts, strict=True):
        first = first if count else start
        kept_E[start : start + count] = False
        origin_E[start : start + count] = first + np.arange(count)
        start += input_tokens(sample)
    row_E = np.cumsum(kept_E) - 1
    kept_T = torch.from_numpy(np.flatnonzero(kept_E))
    ends = [int(row_E[end - 1]) + 1 for end in batch.sequence_ends]
    return replace(
        batch,
        tokens_T=batch.tokens_T[kept_T],
        labels_T=batch.labels_T[kept_T],
        positions_T=batch.positions_T[kept_T],
        sequence_ends=tuple(ends),
        sequence_tokens=tuple(
            tokens - count for tokens, count in zip(batch.sequence_tokens, counts, strict=True)
        ),
        policy=batch.policy.at(kept_T),
        rows_E=torch.from_numpy(row_E[origin_E]),
    )


def _in_common(first: Sample, sample: Sample) -> int:
    longest = min(input_tokens(first), input_tokens(sample))
    labels = np.flatnonzero(sample.loss_mask[1 : longest + 1])
    longest = int(labels[0]) if len(labels) else longest
    others = np.flatnonzero(sample.tokens[:longest] != first.tokens[:longest])
    return int(others[0]) if len(others) else longest
