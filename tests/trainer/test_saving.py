"""When checkpoints are written, and what a failed save means."""

from pathlib import Path

import pytest
import torch

from tests.disks import files_up_to
from trainer.checkpoint.checkpointer import Checkpointer
from trainer.checkpoint.config import CheckpointConfig
from trainer.checkpoint.folder import list_complete
from trainer.errors import ResourceError
from trainer.run_folder import read_lines
from trainer.saving import Saver


def _saver(folder: Path, config: CheckpointConfig) -> Saver:
    checkpointer = Checkpointer(
        folder / "checkpoints", keep_last=config.keep_last, group=None, blocking=config.blocking
    )
    state = {"model.weight": torch.ones(5000)}
    return Saver(
        checkpointer,
        config,
        snapshot=lambda: (state, {"note": "x"}),
        events=folder / "events.jsonl",
    )


def _save_all(saver: Saver, steps: range) -> None:
    for step in steps:
        saver.save_if_due(step, by_time=False)


def _steps(folder: Path) -> list[int]:
    return [step for step, _ in list_complete(folder / "checkpoints")]


def _events(folder: Path) -> list[tuple[str, int]]:
    return [(event["kind"], event["step"]) for event in read_lines(folder / "events.jsonl")]


def test_saves_by_steps_by_time_and_at_the_end(tmp_path):
    saver = _saver(tmp_path, CheckpointConfig(interval_steps=4, keep_last=9, blocking=True))
    saver.rehearse(0)
    for step in range(1, 8):
        saver.save_if_due(step, by_time=step == 3)
    newest = saver.finish(7)
    assert _steps(tmp_path) == [7, 4, 3, 0]
    assert newest is not None
    assert newest.name == "step-00000007"
    assert saver.finish(7) == newest
    saver.close()
    assert _events(tmp_path) == [("checkpoint_saved", step) for step in (0, 3, 4, 7)]


def test_what_is_on_disk_already_is_not_saved_again(tmp_path):
    saver = _saver(tmp_path, CheckpointConfig(interval_steps=0))
    saver.resumed(5, tmp_path / "checkpoints" / "step-00000005")
    assert saver.finish(5) == tmp_path / "checkpoints" / "step-00000005"
    saver.close()
    assert _steps(tmp_path) == []


def test_the_clock_asks_only_after_the_interval(tmp_path):
    assert not _saver(tmp_path, CheckpointConfig()).due_by_time()
    assert not _saver(tmp_path, CheckpointConfig(interval_s=1000.0)).due_by_time()
    assert _saver(tmp_path, CheckpointConfig(interval_s=1e-9)).due_by_time()


def test_a_rehearsal_that_fails_ends_the_run(tmp_path):
    saver = _saver(tmp_path, CheckpointConfig())
    with files_up_to(4096), pytest.raises(ResourceError, match="step 0 could not be written"):
        saver.rehearse(0)
    saver.close()


def test_one_failed_save_is_survived_and_three_in_a_row_are_not(tmp_path):
    saver = _saver(tmp_path, CheckpointConfig(interval_steps=1, blocking=True))
    saver.rehearse(0)
    with files_up_to(4096):
        saver.save_if_due(1, by_time=False)
        saver.save_if_due(2, by_time=False)
    saver.save_if_due(3, by_time=False)
    saver.save_if_due(4, by_time=False)
    assert _steps(tmp_path)[0] == 4
    with (
        files_up_to(4096),
        pytest.raises(ResourceError, match=r"newest complete one is .*step-00000004"),
    ):
        _save_all(saver, range(5, 10))
    saver.close()
    assert [e for e in _events(tmp_path) if e[0] == "checkpoint_failed"][:2] == [
        ("checkpoint_failed", 1),
        ("checkpoint_failed", 2),
    ]
    assert _steps(tmp_path)[0] == 4


def test_an_earlier_failure_does_not_spoil_the_last_save(tmp_path):
    saver = _saver(tmp_path, CheckpointConfig(interval_steps=2, blocking=True))
    with files_up_to(4096):
        saver.save_if_due(2, by_time=False)
    assert saver.finish(3) == tmp_path / "checkpoints" / "step-00000003"
    saver.close()
    assert _events(tmp_path) == [("checkpoint_failed", 2), ("checkpoint_saved", 3)]


def test_the_last_save_must_succeed(tmp_path):
    saver = _saver(tmp_path, CheckpointConfig(interval_steps=0))
    with (
        files_up_to(4096),
        pytest.raises(ResourceError, match="make room and run the same command again"),
    ):
        saver.finish(3)
    saver.close()
