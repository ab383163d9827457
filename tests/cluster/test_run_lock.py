"""One driver per run folder."""

from pathlib import Path

import pytest

from cluster.run_lock import held
from trainer.errors import RecipeError, ResourceError
from trainer.run_folder import RunFolder


def test_a_second_driver_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with held(folder), pytest.raises(RecipeError, match=str(folder.root)), held(folder):
        pytest.fail("two drivers")
    with pytest.raises(ZeroDivisionError), held(folder):
        raise ZeroDivisionError
    with held(folder):
        assert (folder.root / ".lock").exists()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match=r"run\.dir"), held(RunFolder(tmp_path / "file/run")):
        pytest.fail("held nothing")
