"""Samples of different lengths with everything that can be known of them."""

import numpy as np

from trainer.rl.messages import Sample

VOCABULARY = 40


def make_sample(number, *, length=None, version=3, routing=None, reference=True, turns=1):
    """A prompt, then `turns` stretches of sampled tokens with an observation between them."""
    generator = np.random.default_rng(number)
    length = length or int(generator.integers(4, 12))
    prompt = int(generator.integers(1, length - 1))
    mask = np.zeros(length, dtype=np.int8)
    mask[prompt:] = 1
    if turns > 1 and length - prompt > 3:
        mask[prompt + 1] = 0
    log_probs = generator.normal(-2.0, 0.3, length).astype(np.float32)
    drawn = generator.integers(version - 1, version + 1, length)
    return Sample(
        tokens=generator.integers(0, VOCABULARY, length).astype(np.int32),
        loss_mask=mask,
        log_probs=np.where(mask, log_probs, np.nan).astype(np.float32),
        model_log_probs=np.where(mask, log_probs - 0.1, np.nan).astype(np.float32),
        versions=np.where(mask, drawn, -1).astype(np.int32),
        advantage=float(generator.normal()),
        reward=float(generator.random()),
        group=number // 2,
        reference_log_probs=np.where(mask, log_probs - 0.3, 0.0).astype(np.float32)
        if reference
        else None,
        routing=None
        if routing is None
        else generator.integers(0, routing[2], (length - 1, *routing[:2])).astype(np.int16),
    )


def make_samples(count, **changes):
    """The same ones every time."""
    return tuple(make_sample(number, turns=1 + number % 2, **changes) for number in range(count))
