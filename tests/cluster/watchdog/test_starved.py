"""The guarantees of cluster/watchdog/starved.py."""

import pytest

from cluster.watchdog.starved import Starvation, StarvedSteps, ThreadTimes


def starved_s(*looks, every_s=0.25):
    """After looks at the threads of one process."""
    process = Starvation()
    for number, threads in enumerate(looks):
        process.add(100.0 + number * every_s, dict(enumerate(threads)))
    return process.total_s


def thread(wants, ran_s=0.0, waited_s=0.0):
    return ThreadTimes(wants, ran_s, waited_s)


def test_a_process_that_sleeps_or_runs_undisturbed_is_not_starved():
    asleep, runs = thread(False, 3.0, 1.0), [thread(True, 0.25 * n, 1.0) for n in range(9)]
    assert starved_s(*([asleep, running] for running in runs)) == 0.0


def test_time_waited_for_a_core_counts_once_it_is_known():
    half = [[thread(True, 0.125 * n, 5.0 + 0.125 * n)] for n in range(9)]
    assert starved_s(*half) == pytest.approx(1.0)


def test_a_wait_counts_while_it_lasts_and_not_again_when_it_is_over():
    waits = [[thread(True, 7.0)]] * 9
    over = [[thread(True, 7.1, 2.1)]]
    assert starved_s(*waits) == pytest.approx(2.0)
    assert starved_s(*waits, *over) == pytest.approx(2.1)


def test_no_more_than_the_time_between_two_looks_counts():
    assert starved_s([thread(False)], [thread(True, 0.1, 30.0)]) == 0.25


def test_the_thread_that_waited_longest_counts():
    looks = [[thread(True, n, 0.05 * n), thread(True, n, 0.2 * n)] for n in range(6)]
    assert starved_s(*looks) == pytest.approx(1.0)


def test_threads_that_come_and_go_say_nothing():
    assert starved_s([], [thread(True, 1.0, 9.0)], [], [thread(True, 1.0, 9.0)]) == 0.0


def test_starvation_is_spread_over_the_steps_that_ended_meanwhile():
    steps = StarvedSteps(window_steps=4)
    steps.add({0: 5.0, 1: 7.0}, 1)
    assert steps.usual_s == 0.0
    steps.add({0: 6.0, 1: 7.0}, 2)
    assert steps.usual_s == pytest.approx((0.0 + 0.25 + 0.25) / 3)
    # Another process begins to count anew.
    steps.add({0: 0.1, 1: 7.0}, 1)
    assert steps.usual_s == pytest.approx((0.0 + 0.25 + 0.25 + 0.0) / 4)
