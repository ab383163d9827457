"""The real training process under the real driver: what a run leaves behind."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.runs import run
from tests.jobs import tiny_job
from tests.left import metrics
from trainer.checkpoint.folder import list_complete
from trainer.errors import ExitCode
from trainer.run_folder import RunFolder, read_lines


@pytest.mark.timeout(120)
def test_a_run_leaves_everything_that_is_promised(
    local_cluster: None, tmp_path: Path, view: Any
) -> None:
    job = tiny_job(tmp_path)
    folder = RunFolder.of(job.run)

    assert run(job, view) is ExitCode.DONE
    assert [record["step"] for record in view.steps] == [1, 2, 3, 4, 5, 6]
    for path in (folder.recipe, folder.info, folder.exit, folder.tokenizer / "tokenizer.json"):
        assert path.is_file(), path
    assert len(metrics(job)) == len(read_lines(folder.plans)) == 6
    assert list(folder.tensorboard.iterdir())
    assert folder.log("worker", 0).exists()
    assert folder.log("worker", 1).exists()
    assert [step for step, _ in list_complete(folder.checkpoints)] == [6, 0]
    kinds = [event["kind"] for event in read_lines(folder.events)]
    assert kinds == ["ranks_started", "started", "checkpoint_saved", "checkpoint_saved", "finished"]
    assert json.loads(folder.exit.read_text())["code"] == 0
    assert any("8 sequences × 48; 2 ranks" in note for note in view.notes)

    assert run(job, view) is ExitCode.DONE
    assert "all 6 steps are done and nothing is left to train" in view.notes[-1]
    assert len(view.steps) == 6
