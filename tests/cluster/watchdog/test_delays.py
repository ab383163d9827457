"""The guarantees of cluster/watchdog/delays.py."""

from statistics import median

import pytest

from cluster.watchdog.delays import ADOPTED_STEPS, Delays, StepDelays, pair_ratios
from tests.cluster.watchdog.given import collective, reading

PAIR = {"pair": (0, 1)}


def feed(delays, sequence, seconds, *, late_s=0.0, sent_bytes=1024):
    """One collective of two ranks: rank 0 waits for rank 1 for `late_s` first."""
    for rank, own_s in ((0, seconds + late_s), (1, seconds)):
        done = collective("pair", sequence, seconds=own_s, sent_bytes=sent_bytes)
        delays.add({rank: reading(rank, members=PAIR, recent=[done])})
    delays.close_steps(1)


def ratio(delays):
    return median(step.ratio for step in delays.windows()["pair"])


def filled(*, steps=40):
    delays = Delays(window_steps=10)
    for sequence in range(1, steps + 1):
        feed(delays, sequence, 0.1)
    return delays


def test_a_late_rank_makes_no_transfer_slow():
    delays = filled()
    for sequence in range(41, 61):
        feed(delays, sequence, 0.1, late_s=5.0)
    assert ratio(delays) == pytest.approx(1.0)


def test_a_slow_transfer_is_seen_with_what_it_costs():
    delays = filled()
    for sequence in range(41, 61):
        feed(delays, sequence, 1.0)
    assert ratio(delays) == pytest.approx(10.0)
    assert delays.windows()["pair"][-1].excess_s == pytest.approx(0.9)


def test_another_size_of_message_is_another_line():
    delays = filled()
    for sequence in range(41, 81):
        feed(delays, sequence, 1.0, sent_bytes=64 * 1024)
    assert ratio(delays) == pytest.approx(1.0)


def test_slowness_becomes_usual_only_after_long():
    delays = filled()
    for sequence in range(41, 41 + ADOPTED_STEPS - 1):
        feed(delays, sequence, 1.0)
    assert ratio(delays) == pytest.approx(10.0)
    for sequence in range(41 + ADOPTED_STEPS, 141 + ADOPTED_STEPS):
        feed(delays, sequence, 1.0)
    assert ratio(delays) == pytest.approx(1.0)


def test_transfers_of_several_steps_between_two_looks_count_as_several():
    delays = filled(steps=20)
    before = len(delays.windows().get("pair", []))
    done = [collective("pair", n, seconds=0.1) for n in range(21, 33)]
    delays.add({rank: reading(rank, members=PAIR, recent=done) for rank in (0, 1)})
    delays.close_steps(12)
    assert before < 10
    assert len(delays.windows()["pair"]) == 10


def test_a_pair_is_judged_by_the_smallest_communicators_of_both():
    windows = {name: [StepDelays(value, 0.0)] for name, value in {"pair": 9.0, "all": 2.0}.items()}
    cells = pair_ratios(windows, {"pair": (0, 1), "all": (0, 1, 2)})
    assert cells[0, 1] == cells[1, 0] == 9.0
    assert cells[0, 2] == cells[1, 2] == 2.0


def test_sequences_begin_anew_after_forgetting_and_the_usual_stays():
    delays = filled()
    delays.forget()
    assert delays.windows() == {}
    for sequence in range(1, 13):
        feed(delays, sequence, 1.0)
    assert ratio(delays) == pytest.approx(10.0)
