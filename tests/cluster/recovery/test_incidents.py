"""What the log of events tells of a fault."""

from pathlib import Path

from cluster.failure import Failure
from cluster.recovery.incidents import Incidents
from trainer.errors import ExitCode
from trainer.run_folder import read_lines


def failure(step: int) -> Failure:
    return Failure(
        kind="died",
        rank=1,
        host="b",
        phase="training",
        step=step,
        error="gone",
        exit_code=ExitCode.INFRASTRUCTURE,
        time_s=0.0,
    )


def test_a_fault_is_told_with_what_it_cost(tmp_path: Path) -> None:
    clock = iter(range(100, 200))
    incidents = Incidents(tmp_path / "events.jsonl", clock=lambda: next(clock), now=lambda: 5.0)
    incidents.step({"step": 6})
    incidents.step({"step": 7})
    assert incidents.fault(failure(8)).stepped
    assert not incidents.fault(failure(6)).stepped
    incidents.step({"step": 7})
    incidents.step({"step": 8})
    incidents.layout_changed(4, 2)
    told = read_lines(tmp_path / "events.jsonl")
    assert [event["kind"] for event in told] == [
        "worker_lost",
        "worker_lost",
        "recovered",
        "layout_changed",
    ]
    recovered = told[2]
    assert (recovered["rank"], recovered["host"], recovered["cause"]) == (1, "b", "gone")
    assert recovered["lost_steps"] == 1
    assert recovered["resumed_s"] == 2.0
    assert (told[3]["ranks_before"], told[3]["ranks"], told[3]["step"]) == (4, 2, 8)
