"""What `braid top` reads from a run folder."""

import json
import time
from pathlib import Path

import pytest

from recipes.top import state_of
from trainer.errors import RecipeError
from trainer.run_folder import RunFolder, append_event, append_line


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"recipe\.yaml is missing"):
        state_of(tmp_path)


def test_the_state_of_a_run_that_lost_a_rank(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.recipe.write_text("")
    assert state_of(tmp_path).rows() == [("state", "starting")]
    for number in range(2):
        ranks = [{"rank": r, "host": "abc"[r], "process": 10 + r} for r in range(2 + number)]
        append_event(
            folder.events, now_s=0.0, kind="ranks_started", step=0, generation=number, ranks=ranks
        )
    now_s = time.time()
    append_event(
        folder.events, now_s=now_s, kind="worker_lost", step=4, rank=1, host="b", cause="x"
    )
    append_event(folder.events, now_s=now_s, kind="recovered", step=4, resumed_s=2.5, lost_steps=1)
    line = {"step": 4, "time": now_s, "loss": 2.0, "tokens_per_s": 1000.0, "step_s": 0.5}
    append_line(folder.metrics, line)
    with folder.metrics.open("a") as file:
        file.write('{"step": 5, "half')
    state = state_of(tmp_path)
    rows = dict(state.rows())
    assert rows["state"] == "training, generation 1"
    assert rows["step"].startswith("4, ")
    assert rows["c"] == "ranks 2"
    assert "rank 1 on b, x" in rows["worker_lost"]
    assert "after 2.5 s, 1 steps lost" in rows["recovered"]
    folder.exit.write_text(json.dumps({"code": 12, "cause": "given up"}))
    assert dict(state_of(tmp_path).rows())["state"] == "ended with code 12: given up"


def test_the_state_of_a_long_run_by_rewards(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.recipe.write_text("")
    ranks = [{"rank": 0, "host": "a", "process": 10}]
    append_event(folder.events, now_s=0.0, kind="ranks_started", step=0, generation=3, ranks=ranks)
    for number in range(3000):
        append_event(folder.events, now_s=0.0, kind="group_fault", step=1, prompt=number)
    # Longer than what is read at a time.
    append_event(folder.events, now_s=0.0, kind="group_fault", step=1, cause="x" * 200_000)
    append_event(folder.events, now_s=0.0, kind="learned_nothing", step=1)
    append_event(
        folder.events, now_s=0.0, kind="rollout_lost", step=2, worker="rollout-1", cause="killed"
    )
    line = {"step": 2, "time": 0.0, "loss": 2.0, "tokens_per_s": 1000.0, "step_s": 0.5}
    append_line(folder.metrics, {**line, "reward/mean": 0.5, "accuracy": 0.25})
    rows = dict(state_of(tmp_path).rows())
    assert rows["state"] == "training, generation 3"
    assert rows["a"] == "ranks 0"
    assert rows["rewards"].startswith("reward: 0.500  accuracy: 25.0%")
    assert "rollout-1, killed" in rows["rollout_lost"]
