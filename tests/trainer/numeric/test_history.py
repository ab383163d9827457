"""The guarantees of trainer/numeric/history.py, on histories as training makes them."""

import json
import math
import random
from statistics import median

import pytest

from trainer.numeric.history import FIRST_STEPS, RECENT_STEPS, History, decode, encode, spike_cause

STEPS = 1500

_LOSSES = """
6.25 6.24 6.22 6.19 6.16 6.11 6.04 5.98 5.98 5.92 5.88 5.86 5.82 5.87 5.77 5.72 5.70 5.72 5.60
5.60 5.62 5.55 5.60 5.57 5.49 5.49 5.43 5.44 5.38 5.41 5.31 5.33 5.33 5.25 5.21 5.26 5.36 5.29
5.30 5.37 5.26 5.24 5.16 5.17 5.03 5.22 5.17 5.08 5.18 5.11 5.17 5.03 4.92 5.09 4.89 4.94 5.04
5.13 5.14 4.87
"""
_NORMS = """
0.56 0.58 0.61 0.68 0.74 0.85 0.78 0.82 0.72 0.77 0.79 0.67 0.82 0.71 0.70 0.71 0.83 0.75 0.72
0.65 0.61 0.72 0.58 0.61 0.60 1.17 0.90 0.67 0.55 0.58 0.58 0.61 0.69 0.82 0.67 0.68 0.62 0.88
0.63 0.94 5.23 0.67 0.65 0.65 0.74 0.75 0.69 0.79 1.20 0.91 0.67 0.71 0.85 0.75 0.85 0.71 0.65
0.65 0.87 1.13
"""
HEALTHY_RUN = list(zip(map(float, _LOSSES.split()), map(float, _NORMS.split()), strict=True))
"""The first steps of recipes/debug_cpu.yaml: one batch has the gradient of several, and an ordinary
loss."""


def healthy(seed: int) -> list[tuple[float, float]]:
    """Losses and gradient norms of an undisturbed run: warm-up, decay, noise with heavy tails, and
    batches of now long, now short sequences."""
    chance = random.Random(seed)
    noise, warmup = chance.uniform(0.003, 0.08), chance.randrange(1, 120)
    share_long, gap = chance.uniform(0.02, 0.5), chance.uniform(0.0, 0.5)
    steps = []
    for step in range(STEPS):
        curve = 2.0 + 8.0 / (1.0 + 0.05 * min(step, step * step / warmup))
        long = chance.random() < share_long
        tail = chance.gauss(0.0, noise) * (3.0 if chance.random() < 0.03 else 1.0)
        norm = (0.4 + 4.0 / (1.0 + 0.05 * step)) * math.exp(chance.gauss(0.2 * long, 0.3))
        if step < warmup:
            norm *= 1.0 + step / warmup
        steps.append((curve + gap * long + tail, norm))
    return steps


def causes(steps: list[tuple[float, float]]) -> list[str | None]:
    history, found = History(), []
    for loss, norm in steps:
        found.append(spike_cause(history, loss, norm, deviations=8.0))
        history = history.adding(loss, norm)
    return found


@pytest.mark.parametrize("seed", range(12))
def test_healthy_training_raises_nothing(seed):
    assert not any(causes(healthy(seed)))


def with_rare_batches(seed: int) -> list[tuple[float, float]]:
    """The same with single batches that have up to ten times the gradient."""
    chance = random.Random(seed)
    return [
        (loss, norm * chance.uniform(3.0, 10.0) if chance.random() < 0.005 else norm)
        for loss, norm in healthy(seed)
    ]


def test_a_single_batch_with_a_large_gradient_and_an_ordinary_loss_is_none():
    assert max(norm for _, norm in HEALTHY_RUN) > 7 * median(norm for _, norm in HEALTHY_RUN)
    assert not any(causes(HEALTHY_RUN))
    for seed in range(6):
        assert not any(causes(with_rare_batches(seed)))


def test_a_gradient_that_is_large_with_its_loss_or_for_three_steps_is_a_spike():
    before, (loss, norm) = HEALTHY_RUN[:40], HEALTHY_RUN[40]
    # The loss alone would be none.
    assert causes([*before, (7.4, norm)])[-1].startswith("gradient norm ")
    found = causes([*before, *[(loss, norm)] * 5])
    assert [n for n, cause in enumerate(found) if cause] == [42]
    assert found[42].startswith("gradient norm ")


@pytest.mark.parametrize("seed", range(12))
def test_a_spike_is_found_in_its_step(seed):
    chance = random.Random(seed)
    steps = healthy(seed)
    at = chance.randrange(300, STEPS)
    before = steps[:at]
    usual = sorted(loss for loss, _ in before[-RECENT_STEPS:])
    high = usual[-1] + 2.5 * (usual[-1] - usual[0]) + 0.2
    norm = max(norm for _, norm in before[-RECENT_STEPS:])
    assert causes([*before, (high, 3.0 * norm)])[-1].startswith("loss ")
    assert causes([*before, (2.0 * high, steps[at][1])])[-1].startswith("loss ")
    assert causes([*before, (steps[at][0], 30.0 * norm)])[-1].startswith("gradient norm ")


def test_a_level_that_lasts_becomes_the_usual_one():
    steps = [(2.0 + 0.01 * (n % 3), 1.0) for n in range(100)]
    found = causes([*steps, *[(4.0 + 0.01 * (n % 3), 1.0) for n in range(100)]])
    assert [n for n, cause in enumerate(found) if cause] == [100]


def test_nothing_is_said_before_enough_was_seen():
    steps = [(2.0, 1.0)] * (FIRST_STEPS - 1)
    assert causes([*steps, (100.0, 1e6)])[-1] is None
    assert causes([*steps, (2.0, 1.0), (100.0, 1e6)])[-1] is not None


def test_losses_of_zero_and_below_are_no_trouble():
    assert not any(causes([(0.0, 0.0)] * 100))
    assert not any(causes([(-2.0 - 0.1 * (n % 2), 1.0) for n in range(100)]))


def test_a_history_comes_back_from_json_in_the_same_room():
    history, lengths = History(), set()
    for loss, norm in healthy(3)[:200]:
        text = json.dumps(encode(history))
        lengths.add(len(text))
        assert decode(json.loads(text)) == history
        history = history.adding(loss, norm)
    assert len(lengths) == 1
    assert len(history.losses) == RECENT_STEPS
    with pytest.raises(ValueError, match="no history"):
        decode({"losses": "AAAA"})
