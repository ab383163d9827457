"""The guarantees of cluster/drills/judge.py."""

from typing import Any

from cluster.drills.judge import Planted, judge, same_losses

PLANTED = Planted(drill="kill-worker", at_s=100.0, step=5, rank=1, host="b")
LOSSES = [(step, 1.0 / step) for step in range(1, 9)]


def event(kind: str, time: float, **details: Any) -> dict[str, Any]:
    return {"kind": kind, "time": time, "step": 5, **details}


LOST = event("worker_lost", 100.5, rank=1, host="b", phase="training", cause="gone")
BACK = event("recovered", 103.0, rank=1, host="b", lost_steps=1)


def test_the_first_incident_after_the_fault_is_judged() -> None:
    before = event("worker_lost", 50.0, rank=0, host="a")
    verdict = judge(PLANTED, [before, LOST, BACK], LOSSES, LOSSES)
    assert (verdict.detected_s, verdict.resumed_s, verdict.lost_steps) == (0.5, 3.0, 1)
    assert verdict.named["rank"] == 1
    assert verdict.named["cause"] == "gone"
    assert verdict.named_right
    assert verdict.losses_equal


def test_another_rank_is_named_wrongly() -> None:
    verdict = judge(PLANTED, [{**LOST, "rank": 0}, BACK], LOSSES, LOSSES)
    assert not verdict.named_right


def test_what_nobody_told_is_told_as_such() -> None:
    verdict = judge(PLANTED, [], LOSSES[:5], LOSSES)
    assert (verdict.detected_s, verdict.resumed_s, verdict.named_right) == (None, None, False)
    assert not verdict.losses_equal


def test_a_batch_that_was_left_out_counts_as_lost() -> None:
    planted = Planted(drill="nan", at_s=100.0, step=5, rank=1, host="b")
    skipped = event("numeric_fault", 100.5, rank=1, host="b", cause="nan", action="skip")
    verdict = judge(planted, [skipped], LOSSES, LOSSES)
    assert (verdict.lost_steps, verdict.named_right, verdict.resumed_s) == (1, True, None)
    back = event("rolled_back", 101.0, lost_steps=3)
    verdict = judge(planted, [{**skipped, "action": "rollback"}, back], LOSSES, LOSSES)
    assert verdict.lost_steps == 3


def test_a_fault_of_no_process_is_named_by_its_kind() -> None:
    planted = Planted(drill="fill-disk", at_s=100.0, step=5, rank=None, host=None)
    failed = event("checkpoint_failed", 104.0, cause="no space left")
    assert judge(planted, [failed], LOSSES, LOSSES).named_right
    assert judge(planted, [failed], LOSSES, LOSSES).detected_s == 4.0
    assert not judge(planted, [LOST, failed], LOSSES, LOSSES).named_right


def test_losses_are_equal_bit_for_bit_unless_the_ranks_changed() -> None:
    other = [*LOSSES[:-1], (8, LOSSES[-1][1] * (1 + 1e-6))]
    assert not judge(PLANTED, [LOST, BACK], other, LOSSES).losses_equal
    changed = event("layout_changed", 101.0, ranks=1)
    assert judge(PLANTED, [LOST, changed, BACK], other, LOSSES).losses_equal
    assert not same_losses(LOSSES[1:], LOSSES, bound=1.0)


def test_a_link_is_named_by_both_ends_or_by_one_host() -> None:
    cut = Planted(drill="slow-link", at_s=100.0, step=5, rank=None, host="b", link=("a", "b"))
    for details, right in (
        ({"link": ["b", "a"]}, True),
        ({"link": ["a", "c"]}, False),
        ({"link": None, "host": "b"}, True),
        ({"link": None, "host": "c"}, False),
    ):
        verdict = judge(cut, [event("link_slow", 101.0, **details)], LOSSES, LOSSES)
        assert verdict.named_right == right
        assert verdict.lost_steps == 0
