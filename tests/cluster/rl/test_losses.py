"""When a lost worker is replaced, and when the run ends."""

from dataclasses import replace

from cluster.rl.losses import MOST_IN_VAIN, Loss, exit_code_of, refusal, story
from trainer.errors import ExitCode

LOSS = Loss(
    name="rollout-1",
    host="a",
    reason="the process ended: killed",
    exit_code=ExitCode.INFRASTRUCTURE,
    answered=0,
)


def losses(count: int, *, answers_between: int = 1) -> list[Loss]:
    return [
        replace(LOSS, name=f"rollout-0.{n}", answered=n * answers_between) for n in range(count)
    ]


def test_a_loss_that_a_new_process_may_mend_is_replaced() -> None:
    assert refusal(losses(3), max_restarts=3) == ""


def test_one_more_than_allowed_ends_the_run_with_the_story_of_each() -> None:
    found = losses(4)
    assert "rollout.max_restarts is 3" in refusal(found, max_restarts=3)
    assert exit_code_of(found) is ExitCode.WATCHDOG
    assert [line.split(" ")[0] for line in story(found).splitlines()] == [
        f"rollout-0.{n}" for n in range(4)
    ]


def test_a_fault_that_no_new_process_mends_ends_the_run_at_once() -> None:
    broken = replace(LOSS, reason="rl.task.path=x is missing", exit_code=ExitCode.DATA)
    assert refusal([broken], max_restarts=10) == "rl.task.path=x is missing"
    assert exit_code_of([broken]) is ExitCode.DATA


def test_losses_without_an_answer_between_them_end_the_run() -> None:
    assert refusal(losses(MOST_IN_VAIN, answers_between=0), max_restarts=100) == ""
    found = losses(MOST_IN_VAIN + 1, answers_between=0)
    assert "without an answer" in refusal(found, max_restarts=100)
    assert refusal(losses(50), max_restarts=100) == ""
