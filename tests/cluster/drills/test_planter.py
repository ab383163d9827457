"""One run, ten faults of all kinds: it ends like an undisturbed one, bit for bit."""

import json
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cluster.config import ClusterConfig
from cluster.drills.planter import Planter, RunEnded
from cluster.drills.series import draw_faults
from cluster.recovery.config import RecoveryConfig
from tests.cluster.runs import run
from tests.jobs import tiny_job, train_on_ranks
from tests.left import losses
from trainer.checkpoint.config import CheckpointConfig
from trainer.config import JobConfig, RunConfig, TrainConfig
from trainer.errors import ExitCode
from trainer.run_folder import RunFolder, read_lines

STEPS = 150
FAULTS = 10
PATIENT = RecoveryConfig(
    max_restarts=10 * FAULTS, backoff_s=0.1, free_within_s=2.0, replace_within_s=120.0
)


def job(folder: Path, name: str, *, checkpoints_every: int) -> JobConfig:
    return tiny_job(
        folder,
        run=RunConfig(name=name, dir=str(folder / "runs")),
        train=TrainConfig(steps=STEPS, global_batch_tokens=8 * 48, max_tokens_per_device=4 * 48),
        checkpoint=CheckpointConfig(interval_steps=checkpoints_every),
    )


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_ten_faults_in_a_row_leave_no_trace_in_the_losses(
    local_cluster: None, tmp_path: Path, view: Any
) -> None:
    whole = job(tmp_path, "whole", checkpoints_every=0)
    train_on_ranks(whole, 2)
    broken = job(tmp_path, "broken", checkpoints_every=3)
    folder = RunFolder.of(broken.run)
    over = threading.Event()
    planter = Planter(folder=folder, total_steps=STEPS, ended=over.is_set)

    def plant() -> None:
        try:
            planter.plant(draw_faults(FAULTS, ranks=2, seed=20))
        except RunEnded:
            return

    thread = threading.Thread(target=plant)
    thread.start()
    try:
        code = run(broken, view, ClusterConfig(address="auto", spares=2), recovery=PATIENT)
    finally:
        over.set()
        thread.join()
    told = Counter(event["kind"] for event in read_lines(folder.events))
    story = json.dumps([vars(fault) for fault in planter.planted], default=str, indent=1)
    assert code is ExitCode.DONE, (folder.exit.read_text(), story)
    assert len(planter.planted) == FAULTS, story
    assert losses(broken) == losses(whole), story
    assert told["recovered"] >= 6, story
    assert told["layout_changed"] == 0
