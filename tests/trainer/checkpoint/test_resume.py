"""Fresh, continued or started from elsewhere: decided by the recipe and the folders alone."""

from pathlib import Path

import pytest

from trainer.checkpoint.folder import commit, create_aside
from trainer.checkpoint.resume import Resume, decide_resume, drop_later_steps, find_checkpoints
from trainer.errors import RecipeError
from trainer.run_folder import RunFolder, append_event, append_line


def _with_checkpoints(root: Path, *steps: int) -> RunFolder:
    folder = RunFolder(root)
    for step in steps:
        aside = create_aside(folder.checkpoints, step)
        (aside / "manifest.json").write_text("{}")
        commit(aside, step)
    return folder


def _paths(folder: RunFolder, *steps: int) -> tuple[Path, ...]:
    return tuple(folder.checkpoints / f"step-{step:08d}" for step in steps)


@pytest.fixture
def fresh(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "fresh")


@pytest.fixture
def used(tmp_path: Path) -> RunFolder:
    return _with_checkpoints(tmp_path / "used", 10, 20)


@pytest.fixture
def without_checkpoint(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "early")
    append_line(folder.metrics, {"step": 1})
    create_aside(folder.checkpoints, 1)
    return folder


def test_auto_goes_on_newest_first(used: RunFolder) -> None:
    expected = Resume(kind="continue", candidates=_paths(used, 20, 10))
    assert decide_resume("auto", used) == expected


def test_auto_starts_afresh_where_there_is_nothing(fresh: RunFolder) -> None:
    assert decide_resume("auto", fresh) == Resume(kind="fresh")


def test_auto_says_so_when_steps_are_lost(without_checkpoint: RunFolder) -> None:
    resume = decide_resume("auto", without_checkpoint)
    assert resume.kind == "fresh"
    assert "no complete checkpoint" in resume.note


def test_never_refuses_checkpoints_and_metrics(
    fresh: RunFolder, used: RunFolder, without_checkpoint: RunFolder
) -> None:
    assert decide_resume("never", fresh) == Resume(kind="fresh")
    with pytest.raises(RecipeError, match=r"holds 2 checkpoints; choose another run\.name"):
        decide_resume("never", used)
    with pytest.raises(RecipeError, match="metrics of an earlier run"):
        decide_resume("never", without_checkpoint)


def test_must_refuses_a_folder_without_checkpoint(
    fresh: RunFolder, used: RunFolder, without_checkpoint: RunFolder
) -> None:
    assert decide_resume("must", used).kind == "continue"
    for folder in (fresh, without_checkpoint):
        with pytest.raises(RecipeError, match="holds no complete checkpoint"):
            decide_resume("must", folder)


def test_a_path_may_be_a_run_its_checkpoints_or_one_step(fresh: RunFolder, used: RunFolder) -> None:
    both = Resume(kind="from", candidates=_paths(used, 20, 10))
    assert decide_resume(str(used.root), fresh) == both
    assert decide_resume(str(used.checkpoints), fresh) == both
    one = _paths(used, 10)
    assert decide_resume(str(one[0]), fresh) == Resume(kind="from", candidates=one)


def test_a_path_that_holds_nothing_is_refused(
    fresh: RunFolder, without_checkpoint: RunFolder
) -> None:
    with pytest.raises(RecipeError, match=r"does not exist; give a run folder"):
        decide_resume("runs/nowhere", fresh)
    with pytest.raises(RecipeError, match="holds no complete checkpoint"):
        decide_resume(str(without_checkpoint.root), fresh)


def test_a_run_started_from_a_path_goes_on_with_its_own(tmp_path: Path, used: RunFolder) -> None:
    own = _with_checkpoints(tmp_path / "own", 25)
    resume = decide_resume(str(used.root), own)
    assert (resume.kind, resume.candidates) == ("continue", _paths(own, 25))
    assert "goes on from them" in resume.note


def test_a_step_of_the_run_itself_is_a_return_to_it(used: RunFolder) -> None:
    one = _paths(used, 10)
    back = Resume(kind="continue", candidates=one, back=True)
    assert decide_resume(str(one[0]), used) == back


def test_find_checkpoints_of_nothing(tmp_path: Path) -> None:
    assert find_checkpoints(tmp_path / "nowhere") == ()


def test_later_and_half_written_lines_are_dropped_and_events_stay(fresh: RunFolder) -> None:
    for step in range(1, 6):
        append_line(fresh.metrics, {"step": step, "loss": float("nan")})
        append_line(fresh.plans, {"step": step})
        append_event(fresh.events, now_s=0.0, kind="checkpoint_saved", step=step)
    with fresh.metrics.open("a") as file:
        file.write('{"step": 2, "lo')
    events = fresh.events.read_text()
    assert drop_later_steps(fresh, 3) == 3 + 2
    for path in (fresh.metrics, fresh.plans):
        assert [line[:10] for line in path.read_text().splitlines()] == [
            '{"step": 1',
            '{"step": 2',
            '{"step": 3',
        ]
    assert fresh.events.read_text() == events
    assert drop_later_steps(fresh, 3) == 0
    assert drop_later_steps(fresh, 0) == 6


def test_dropping_from_files_that_are_not_there(fresh: RunFolder) -> None:
    assert drop_later_steps(fresh, 0) == 0
    assert not fresh.metrics.exists()
