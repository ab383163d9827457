"""The guarantees of cluster/watchdog/deadlines.py."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.watchdog.config import WatchdogConfig
from cluster.watchdog.deadlines import History

SECONDS = st.floats(1e-3, 1e3)


@given(
    steps_s=st.lists(SECONDS, max_size=30),
    silences=st.lists(st.tuples(st.sampled_from(["forward", "saving", "x"]), SECONDS), max_size=30),
    transfers_s=st.lists(SECONDS, max_size=10),
    rounds_s=st.lists(SECONDS, max_size=10),
)
def test_deadlines_are_nested_whatever_the_history(steps_s, silences, transfers_s, rounds_s):
    history = History(WatchdogConfig())
    for step, seconds in enumerate(steps_s):
        history.add_step(seconds, step, None)
    for step, (phase, seconds) in enumerate(silences):
        history.add_silence(phase, seconds, step)
    for seconds in transfers_s:
        history.add_transfer(seconds, 0)
    for seconds in rounds_s:
        history.add_round(seconds)
    limits = history.deadlines()
    assert limits.silence_s < limits.round_s < limits.step_s < limits.outer_s
    assert limits.transfer_s < limits.round_s
    assert max(limits.phases_s.values(), default=0.0) < limits.outer_s
    assert limits.silence_in("forward") < limits.round_s


@pytest.mark.parametrize("step_s", [0.05, 0.3, 1.0, 4.0, 30.0])
def test_a_hang_is_over_its_deadline_within_3_s_or_five_steps(step_s):
    history, chance = History(WatchdogConfig()), random.Random(0)
    for step in range(50):
        seconds = step_s * chance.lognormvariate(0, 0.1)
        history.add_step(seconds, step, None)
        history.add_silence("forward", 0.6 * seconds, step)
    two_polls_s = 0.5
    allowed_s = history.deadlines().silence_in("forward")
    assert allowed_s + two_polls_s <= max(3.0, 5 * history.median_step_s)
    assert allowed_s >= 3.5 * step_s


def test_a_pause_that_was_seen_is_allowed_again_and_forgotten_at_last():
    history = History(WatchdogConfig())
    for step in range(1, 11):
        history.add_step(0.5, step, None)
    for step in range(200):
        history.add_silence("forward", 0.3, step // 20)
    history.add_silence("forward", 6.0, 10)
    assert history.deadlines().silence_in("forward") > 6.0
    assert history.deadlines().silence_in("backward") < 3.0
    history.add_step(0.5, 5000, None)
    assert history.deadlines().silence_in("forward") < 3.0


def test_before_steps_are_known_and_in_unseen_phases_the_first_deadline_holds():
    history = History(WatchdogConfig(first_steps_s=77.0))
    assert history.deadlines().silence_in("forward") == 77.0
    for step in range(1, 11):
        history.add_step(0.5, step, None)
    assert history.deadlines().silence_in("forward") < 3.0
    assert history.deadlines().silence_in("never seen") == 77.0


def test_a_long_phase_has_its_own_deadline_once_all_ranks_came_through():
    history = History(WatchdogConfig())
    for step in range(1, 11):
        history.add_step(0.5, step, None)
    history.add_silence("saving", 40.0, 10)
    assert history.deadlines().silence_in("saving") == 900.0
    history.add_step(0.5, 11, None)
    assert history.deadlines().silence_in("saving") == 160.0
    assert history.deadlines().silence_in("forward") < 3.0


def test_more_work_has_proportionally_more_time():
    history = History(WatchdogConfig())
    for step in range(1, 11):
        history.add_step(2.0, step, 1000.0)
    usual, more = history.more_work(1000.0), history.more_work(4000.0)
    limits = history.deadlines()
    assert limits.silence_in("forward", more_work=usual) == pytest.approx(8.0)
    assert limits.silence_in("forward", more_work=more) == pytest.approx(32.0)
    assert history.more_work(10.0) == 1.0


def test_the_table_lists_every_level():
    history = History(WatchdogConfig())
    for step in range(1, 11):
        history.add_step(0.5, step, None)
    history.add_silence("saving", 20.0, 1)
    table = "\n".join(history.deadlines().lines())
    assert all(word in table for word in ("round", "step", "phase saving", "process group"))
