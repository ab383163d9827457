"""The guarantees of trainer/rl/conducting/window.py."""

import pytest

from trainer.rl.conducting.window import STEPS, Window


def fill(window, steps=STEPS, *, trained_s=1.0, pulses=6, busy_s=1.0):
    for _ in range(pulses):
        window.sampled(busy_s)
    for step in range(steps):
        window.step(trained_s, 10.0 + 2.0 * step)


def test_a_window_needs_ten_steps_and_three_tellings_of_each_worker():
    window = Window()
    fill(window, STEPS - 1)
    assert window.take(workers=2) is None
    window.step(1.0, 100.0)
    assert window.take(workers=3) is None
    assert window.take(workers=0) is None
    measured = window.take(workers=2)
    assert (measured.trained_s, measured.sampled_s, measured.step_s) == (1.0, 0.6, 2.0)


def test_a_slow_step_counts_for_nothing():
    window = Window()
    window.step(500.0, 0.0)
    fill(window)
    measured = window.take(workers=1)
    assert (measured.trained_s, measured.step_s) == (1.0, 2.0)
    assert measured.sampled_s == pytest.approx(6.0 / (STEPS + 1))


def test_a_window_that_was_taken_begins_anew():
    window = Window()
    fill(window)
    assert window.take(workers=2) is not None
    assert window.take(workers=2) is None
    fill(window, pulses=0)
    assert window.take(workers=2) is None
    window.begin()
    fill(window, busy_s=0.0)
    assert window.take(workers=2) is None, "a side that did nothing is not measured"
