"""Memory that an ended run holds is seen and freed, and only then."""

import os
from pathlib import Path

import pytest

from cluster.memory_folder import folders_in_memory
from cluster.run_lock import held
from recipes.clean import clean, kept_in_memory, other_hosts
from recipes.cli import main
from recipes.top import state_of
from trainer.errors import RecipeError
from trainer.run_folder import RunFolder


@pytest.fixture
def killed(tmp_path: Path) -> RunFolder:
    """A run that left a snapshot of 64 KiB."""
    folder = RunFolder(tmp_path / "runs" / "killed")
    folder.root.mkdir(parents=True)
    folder.recipe.write_text(f"keep: {{dir: {tmp_path / 'memory'}}}\n")
    share = folders_in_memory(folder.root, str(tmp_path / "memory"))[1] / "generation-00000001"
    share.mkdir(parents=True)
    (share / "slot-0").write_bytes(os.urandom(65536))
    return folder


def test_what_is_kept_is_seen_and_freed(killed: RunFolder) -> None:
    assert list(kept_in_memory(killed).values()) == [65536]
    assert state_of(killed.root).memory_bytes == 0
    killed.exit.write_text('{"code": 12, "cause": "given up"}')
    assert dict(state_of(killed.root).rows())["memory"].endswith(
        f"`braid clean {killed.root}` frees them"
    )
    assert list(clean(killed).values()) == [65536]
    assert kept_in_memory(killed) == {}
    assert clean(killed) == {}


def test_a_run_that_goes_on_keeps_it(killed: RunFolder) -> None:
    with held(killed), pytest.raises(RecipeError, match="another driver is running"):
        clean(killed)
    assert list(kept_in_memory(killed).values()) == [65536]


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"recipe\.yaml is missing"):
        clean(RunFolder(tmp_path))


def test_other_hosts_are_named(killed: RunFolder) -> None:
    assert other_hosts(killed) == []
    killed.info.write_text('{"hosts": [{"host": "b"}, {"host": "a"}, {"host": "b"}]}')
    assert other_hosts(killed) == ["a", "b"]


def test_the_command(killed: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["clean", str(killed.root), "--json"])
    assert ended.value.code == 0
    assert "65536" in capsys.readouterr().out
