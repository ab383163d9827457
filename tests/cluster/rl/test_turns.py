"""Whole runs by rewards whose places change hands between training and sampling."""

from pathlib import Path
from typing import Any

import pytest

from tests.cluster.rl.driver import job, run
from tests.cluster.rl.test_conducting import assert_each_prompt_once
from tests.left import events
from trainer.config import JobConfig
from trainer.errors import ExitCode
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
    assert measured["step_s"] < measured["before_s"]
