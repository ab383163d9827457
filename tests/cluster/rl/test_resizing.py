"""Whole runs by rewards whose places change hands between training and sampling."""

from pathlib import Path
from typing import Any

import pytest

from tests.cluster.rl.driver import job, run
from tests.cluster.rl.test_conducting import assert_each_prompt_once, events
from trainer.errors import ExitCode
from trainer.run_folder import RunFolder

STEPS = 60


@pytest.mark.timeout(180)
def test_places_go_to_the_side_that_has_most_work_and_no_prompt_is_lost(
    local_cluster: None, tmp_path: Path, view: Any
) -> None:
    turning = job(tmp_path, "turning", steps=STEPS, resize="apply", cpus_per_worker=0.2)
    folder = RunFolder.of(turning.run)
    code = run(
        turning,
        view,
        work="resized:train_by_turns",
        rollout_work="resized:sample_by_turns",
        ranks=2,
    )
    assert code is ExitCode.DONE, view.failures
    assert_each_prompt_once(folder, STEPS)
    # Not a single step is trained twice for it.
    assert len((folder.root / "trained.jsonl").read_text().splitlines()) == STEPS
    splits = [
        (e["trainers_before"], e["workers_before"], e["trainers"], e["workers"])
        for e in events(folder, "resized")
    ]
    assert splits == [(2, 2, 1, 3), (1, 3, 3, 1)]
    first, second = events(folder, "resized")
    assert first["present_s"] == pytest.approx(3.0, rel=0.4)
    assert first["step_s"] == pytest.approx(2.0, rel=0.4)
    assert second["step_s"] == pytest.approx(6.0, rel=0.4)
    measured = events(folder, "sizing_measured")
    assert [event["predicted_s"] for event in measured] == [first["step_s"], second["step_s"]]
    ranks = [len(event["ranks"]) for event in events(folder, "ranks_started")]
    assert ranks == [2, 1, 3]
    # Who leaves for a change is not lost.
    assert events(folder, "rollout_lost") == events(folder, "worker_lost") == []
    assert events(folder, "resize_refused") == []
