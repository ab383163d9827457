"""The guarantees of trainer/numeric/history.py, on histories as training makes them."""

import json
import math
import random

import pytest

from trainer.numeric.history import FIRST_STEPS, RECENT_STEPS, History, decode, encode, spike_cause

STEPS = 1500


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
