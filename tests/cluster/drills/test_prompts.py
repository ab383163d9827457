"""The guarantees of cluster/drills/prompts.py."""

from typing import Any

import pytest

from cluster.drills.prompts import LostSampler, judge_prompts, lost_prompts

PLANTED = LostSampler(worker="rollout-0", host="a", at_s=100.0, step=5)
STEPS = tuple(range(1, 9))


def event(kind: str, time: float, **details: Any) -> dict[str, Any]:
    return {"kind": kind, "time": time, "step": 5, **details}


LOST = event("rollout_lost", 100.5, worker="rollout-0", cause="the process ended", prompts=3)
AGAIN = event("rollout_started", 102.0, worker="rollout-0.1", host="a")


def ledger(*states: str, settled_below: int = 4) -> dict[str, Any]:
    records = [{"number": settled_below + n, "state": state} for n, state in enumerate(states)]
    return {
        "first_number": settled_below + len(states),
        "settled_below": settled_below,
        "settled": [],
        "records": records,
    }


WHOLE = ledger("trained", "dropped", "taken")


def judged(
    events: list[dict[str, Any]], *, steps: tuple[int, ...] = STEPS, prompts: Any = WHOLE
) -> Any:
    return judge_prompts(PLANTED, events, steps=steps, total_steps=8, ledger=prompts)


def test_a_loss_that_cost_no_prompt_holds() -> None:
    before = event("rollout_lost", 50.0, worker="rollout-1", cause="x", prompts=1)
    other = event("rollout_started", 101.0, worker="rollout-1.1", host="a")
    verdict = judged([before, LOST, other, AGAIN])
    assert (verdict.detected_s, verdict.resumed_s, verdict.given_on) == (0.5, 2.0, 3)
    assert (verdict.prompts, verdict.lost_prompts, verdict.missing_steps) == (7, 0, 0)
    assert verdict.named["worker"] == "rollout-0"
    assert verdict.named_right
    assert verdict.held


@pytest.mark.parametrize("state", ["due", "leased", "finished"])
def test_a_prompt_that_nothing_became_of_is_lost(state: str) -> None:
    prompts = ledger("trained", state)
    assert lost_prompts(prompts) == 1
    assert not judged([LOST, AGAIN], prompts=prompts).held
    assert lost_prompts({**WHOLE, "first_number": 9}) == 2, "nothing is known of two"


def test_a_loss_holds_only_with_its_name_a_successor_and_all_steps() -> None:
    assert not judged([AGAIN]).held
    assert judged([AGAIN]).detected_s is None
    assert not judged([{**LOST, "worker": "rollout-1"}, AGAIN]).held
    assert not judged([LOST]).held
    assert not judged([LOST, AGAIN], steps=STEPS[:-1]).held
