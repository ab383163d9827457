"""The guarantees of cluster/recovery/budget.py."""

from dataclasses import replace

import pytest

from cluster.failure import Failure
from cluster.recovery.budget import Allowance, Fault, pause_s, refusal, story, worth_a_restart
from trainer.errors import ExitCode

DIED = Failure(
    kind="died",
    rank=1,
    host="b",
    phase="training",
    step=7,
    error="the worker process ended",
    exit_code=ExitCode.INFRASTRUCTURE,
    time_s=0.0,
)
ALLOWANCE = Allowance(max_restarts=3, window_s=100.0, backoff_s=1.0)


def faults(*at_s: float, stepped: bool = True, failure: Failure = DIED) -> list[Fault]:
    return [Fault(failure=failure, at_s=at, stepped=stepped) for at in at_s]


@pytest.mark.parametrize("code", list(ExitCode))
def test_only_infrastructure_is_tried_again(code: ExitCode) -> None:
    assert worth_a_restart(replace(DIED, exit_code=code)) == (code is ExitCode.INFRASTRUCTURE)


def test_too_many_within_the_window_end_the_run() -> None:
    assert refusal(faults(0, 1, 2), ALLOWANCE) == ""
    assert "4 faults within 100 s" in refusal(faults(0, 1, 2, 3), ALLOWANCE)
    assert refusal(faults(0, 1, 2, 102), ALLOWANCE) == ""


def test_no_restarts_allowed() -> None:
    assert "max_restarts is 0" in refusal(faults(0), replace(ALLOWANCE, max_restarts=0))


def test_an_error_of_the_program_is_not_tried_twice() -> None:
    raised = replace(DIED, kind="raised", error="ZeroDivisionError: by zero")
    assert refusal(faults(0, failure=raised), ALLOWANCE) == ""
    assert "the same error at step 7" in refusal(faults(0, 1, failure=raised), ALLOWANCE)
    other = [*faults(0, failure=raised), *faults(1, failure=replace(raised, rank=raised.rank + 1))]
    assert "the same error at step 7" in refusal(other, ALLOWANCE)
    echo = replace(raised, communication=True)
    assert refusal(faults(0, 1, failure=echo), ALLOWANCE) == ""
    assert refusal(faults(0, 1), ALLOWANCE) == ""
    moved = [*faults(0, failure=raised), *faults(1, failure=replace(raised, step=8))]
    assert refusal(moved, ALLOWANCE) == ""


def test_pauses_double_until_a_step_is_done() -> None:
    first = faults(0)
    assert pause_s(first, ALLOWANCE) == 0.0
    vain = faults(1, 2, 3, stepped=False)
    assert [pause_s(first + vain[:n], ALLOWANCE) for n in (1, 2, 3)] == [1.0, 2.0, 4.0]
    assert pause_s(first + vain + faults(4), ALLOWANCE) == 0.0
    assert pause_s(faults(*range(50), stepped=False), ALLOWANCE) == 60.0


def test_recoveries_that_come_to_no_step_end_soon() -> None:
    plenty = replace(ALLOWANCE, max_restarts=1000)
    assert refusal(faults(*range(5), stepped=False), plenty) == ""
    assert "not a single step" in refusal(faults(*range(6), stepped=False), plenty)


def test_the_story_names_each_fault() -> None:
    told = story(faults(0, 1, 2), lines=2).splitlines()
    assert told == [
        "1 earlier faults are in events.jsonl",
        "step 7: rank 1 on b, training: the worker process ended",
        "step 7: rank 1 on b, training: the worker process ended",
    ]
