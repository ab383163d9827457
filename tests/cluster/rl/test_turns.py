"""Whole runs by rewards whose places change hands between training and sampling, and when a change
is given up."""

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster.rl.rollouts import Happened
from cluster.rl.seating import Moves
from cluster.rl.turns import Parts, Turns
from tests.cluster.rl.driver import job, run
from tests.cluster.rl.test_conducting import assert_each_prompt_once
from tests.left import events
from trainer.config import JobConfig
from trainer.errors import ExitCode
from trainer.rl.conducting.actions import Actions
from trainer.rl.conducting.split import Split
from trainer.run_folder import RunFolder, read_lines

STEPS = 60


def turn(job: JobConfig, view: Any, *, ranks: int) -> RunFolder:
    code = run(
        job,
        view,
        work="resized:train_by_turns",
        rollout_work="resized:sample_by_turns",
        ranks=ranks,
    )
    assert code is ExitCode.DONE, view.failures
    return RunFolder.of(job.run)


@pytest.mark.timeout(180)
def test_places_go_to_the_side_that_has_most_work_and_no_prompt_is_lost(
    local_cluster: None, tmp_path: Path, view: Any
) -> None:
    turning = job(tmp_path, "turning", steps=STEPS, resize="apply", cpus_per_worker=0.2)
    folder = turn(turning, view, ranks=2)
    assert_each_prompt_once(folder, STEPS)
    # Not a single step is trained twice for it.
    assert len(read_lines(folder.root / "trained.jsonl")) == STEPS
    splits = [
        (e["trainers_before"], e["workers_before"], e["trainers"], e["workers"])
        for e in events(turning, "resized")
    ]
    assert splits == [(2, 2, 1, 3), (1, 3, 3, 1)]
    first, second = events(turning, "resized")
    assert first["present_s"] == pytest.approx(3.0, rel=0.4)
    assert first["step_s"] == pytest.approx(2.0, rel=0.4)
    assert second["step_s"] == pytest.approx(6.0, rel=0.4)
    measured = events(turning, "sizing_measured")
    assert [event["predicted_s"] for event in measured] == [first["step_s"], second["step_s"]]
    ranks = [len(event["ranks"]) for event in events(turning, "ranks_started")]
    assert ranks == [2, 1, 3]
    # Who leaves for a change is not lost.
    assert events(turning, "rollout_lost") == events(turning, "worker_lost") == []
    assert events(turning, "resize_refused") == []


@pytest.mark.timeout(120)
def test_more_sample_in_room_that_is_free_and_the_rank_goes_on(
    local_cluster: None, tmp_path: Path, view: Any
) -> None:
    growing = job(
        tmp_path,
        "growing",
        steps=26,
        resize="apply",
        workers=1,
        spare_workers=4,
        cpus_per_worker=0.2,
    )
    folder = turn(growing, view, ranks=1)
    assert_each_prompt_once(folder, 26)
    (resized,) = events(growing, "resized")
    # No more than shortens the step, which the rank's own time bounds.
    assert (resized["trainers"], resized["workers"]) == (1, 3)
    started = [event["worker"] for event in events(growing, "rollout_started")]
    assert sorted(started) == ["rollout-0", "rollout-1", "rollout-2"]
    assert len(events(growing, "ranks_started")) == 1
    (measured,) = events(growing, "sizing_measured")
    assert measured["predicted_s"] == resized["step_s"]
    assert measured["step_s"] < measured["before_s"]


class Sampling:
    """What the thread works with, without processes. The split changes at the first tick."""

    refs: Sequence[Any] = ()

    def __init__(self) -> None:
        self.missing: list[str] = []
        self.refused: list[bool] = []
        self._splits = [Split(trainers=1, workers=2)]

    def look(self, _: Any) -> Happened:
        return Happened()

    def lost(self, _: Any) -> bool:
        return False

    def without_place(self) -> list[str]:
        return self.missing

    def tick(self, _: float) -> Actions:
        return Actions(split=self._splits.pop() if self._splits else None)

    def change(self, _: Split) -> Moves:
        return Moves()

    def given(self, _: Sequence[int], *, refused: bool) -> Moves:
        self.refused.append(refused)
        return Moves()

    def split_refused(self, _: str, __: float) -> Actions:
        return Actions()


@pytest.mark.parametrize("found", [False, True])
def test_a_change_is_given_up_without_room_and_not_for_a_later_loss(
    tmp_path: Path, found: bool
) -> None:
    sampling, now_s = Sampling(), 0.0
    made: Any = sampling
    parts = Parts(
        folder=RunFolder(tmp_path),
        rollouts=made,
        seating=made,
        max_restarts=0,
        supervised_steps=0,
        store=made,
        open_rewards=None,
        conductor=made,
    )
    turns = Turns(parts, made, None, deque(), deque(), lambda: now_s)
    for missing in (["seat"], [] if found else ["seat"], ["seat"], ["seat"]):
        now_s += 6.0
        sampling.missing = missing
        turns.turn()
    assert sampling.refused == ([] if found else [True])
