"""Names, moves and pruning of checkpoint folders, and what a kill at any moment leaves."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.checkpoint.folder import (
    commit,
    create_aside,
    list_complete,
    prune,
    read_latest,
    remove_leftovers,
    step_name,
)

ROOT = Path(__file__).parents[3]
RANDOM_KILLS = 10


def _complete(directory: Path, step: int, mark: str = "") -> Path:
    aside = create_aside(directory, step)
    (aside / "manifest.json").write_text(mark)
    return commit(aside, step)


def _names(directory: Path) -> set[str]:
    return {entry.name for entry in directory.iterdir()}


def test_an_aside_folder_is_not_listed_until_it_is_committed(tmp_path: Path) -> None:
    directory = tmp_path / "checkpoints"
    aside = create_aside(directory, 7)
    (aside / "manifest.json").write_text("")
    assert aside.name == "step-00000007.partial"
    assert list_complete(directory) == []
    assert read_latest(directory) is None
    final = commit(aside, 7)
    assert list_complete(directory) == [(7, final)]
    assert read_latest(directory) == final


def test_aside_folders_are_never_shared(tmp_path: Path) -> None:
    assert len({create_aside(tmp_path, 1) for _ in range(3)}) == 3


def test_listing_is_newest_first_beyond_eight_digits(tmp_path: Path) -> None:
    for step in (5, 200_000_000, 99_999_999):
        _complete(tmp_path, step)
    assert [step for step, _ in list_complete(tmp_path)] == [200_000_000, 99_999_999, 5]


def test_folders_without_manifest_and_foreign_names_are_not_listed(tmp_path: Path) -> None:
    (tmp_path / step_name(1)).mkdir()
    (tmp_path / "step-2").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    assert list_complete(tmp_path) == []
    assert list_complete(tmp_path / "nowhere") == []


def test_a_second_save_of_a_step_replaces_the_first(tmp_path: Path) -> None:
    _complete(tmp_path, 3, "old")
    final = _complete(tmp_path, 3, "new")
    assert (final / "manifest.json").read_text() == "new"
    assert _names(tmp_path) == {final.name, "latest"}


def test_what_was_being_replaced_is_still_listed(tmp_path: Path) -> None:
    final = _complete(tmp_path, 3)
    replaced = final.rename(tmp_path / f"{final.name}.replaced")
    assert list_complete(tmp_path) == [(3, replaced)]
    assert read_latest(tmp_path) == replaced
    assert remove_leftovers(tmp_path) == []
    _complete(tmp_path, 3)
    assert _names(tmp_path) == {final.name, "latest"}


def test_what_has_been_replaced_goes(tmp_path: Path) -> None:
    replaced = _complete(tmp_path, 3).rename(tmp_path / "step-00000003.replaced")
    final = _complete(tmp_path, 4).rename(tmp_path / "step-00000003")
    assert list_complete(tmp_path) == [(3, final), (3, replaced)]
    assert remove_leftovers(tmp_path) == [replaced]


@pytest.mark.parametrize("keep_last", [1, 2, 5])
def test_pruning_keeps_the_newest(tmp_path: Path, keep_last: int) -> None:
    for step in range(1, 5):
        _complete(tmp_path, step)
    prune(tmp_path, keep_last=keep_last, written_step=4)
    assert [step for step, _ in list_complete(tmp_path)] == [4, 3, 2, 1][:keep_last]


def test_pruning_after_a_return_to_an_earlier_step_keeps_what_was_just_written(
    tmp_path: Path,
) -> None:
    for step in (50, 60, 100, 150):
        _complete(tmp_path, step)
    prune(tmp_path, keep_last=1, written_step=60)
    assert [step for step, _ in list_complete(tmp_path)] == [150, 100, 60]


def test_leftovers_go_and_everything_else_stays(tmp_path: Path) -> None:
    final = _complete(tmp_path, 1)
    (create_aside(tmp_path, 2) / "data").write_text("half")
    create_aside(tmp_path, 2)
    (tmp_path / "step-00000000.removed").mkdir()
    (tmp_path / ".latest.4711af").write_text("")
    (tmp_path / "notes.txt").write_text("mine")
    assert len(remove_leftovers(tmp_path)) == 4
    assert _names(tmp_path) == {final.name, "latest", "notes.txt"}


def test_latest_that_names_nothing_is_not_believed(tmp_path: Path) -> None:
    (tmp_path / "latest").write_text("step-00000009\n")
    assert read_latest(tmp_path) is None


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, list[str]]]:
    base = tmp_path_factory.mktemp("killing")
    command = [sys.executable, "-m", "tests.trainer.checkpoint.killing"]
    done = subprocess.run(
        [*command, str(base), str(RANDOM_KILLS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_killed_before_every_change_to_the_folder(found: dict[str, tuple[int, list[str]]]) -> None:
    kills, problems = found["every"]
    assert problems == []
    assert kills > 30


def test_killed_at_random_moments(found: dict[str, tuple[int, list[str]]]) -> None:
    assert found["random"] == [RANDOM_KILLS, []]
