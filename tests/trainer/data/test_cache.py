import multiprocessing
from pathlib import Path

import pytest

from trainer.data.cache import claim, digest, disk_errors, locked, wait_until, written_aside
from trainer.errors import InfrastructureError, ResourceError


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a"
    with written_aside(path) as file:
        file.write(b"one")
        assert not path.exists()
    with pytest.raises(TypeError), written_aside(path) as file:
        file.writelines([b"two", "text"])
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full does not exist here")
def test_a_full_disk_is_a_matter_of_resources(tmp_path):
    with (
        pytest.raises(ResourceError, match=r"is full; free some space, or point data\.cache_dir"),
        disk_errors(tmp_path),
        open("/dev/full", "wb", buffering=0) as file,
    ):
        file.write(b"x")


def test_other_disk_errors_pass():
    with pytest.raises(OSError, match="Bad file"), disk_errors(Path("x")):
        raise OSError(9, "Bad file")


def hold(path, held, release):
    with claim(Path(path)) as mine:
        assert mine
        held.set()
        release.wait()


def test_a_claim_is_refused_while_another_process_holds_it(tmp_path):
    context = multiprocessing.get_context("forkserver")
    held, release = context.Event(), context.Event()
    process = context.Process(target=hold, args=(str(tmp_path / "lock"), held, release))
    process.start()
    held.wait()
    with claim(tmp_path / "lock") as mine:
        assert not mine
    # The claim of a process that was killed is free.
    process.kill()
    process.join()
    with claim(tmp_path / "lock") as mine:
        assert mine
    with locked(tmp_path / "lock", "testing"), claim(tmp_path / "lock") as mine:
        assert not mine


def test_waiting_says_what_for_and_gives_up():
    with pytest.raises(InfrastructureError, match=r"gave up after 0 s: the moon is rising"):
        wait_until(lambda: False, what="the moon is rising", deadline_s=0.0)


def test_keys_differ_where_values_do():
    assert digest("a", 1) == digest("a", 1)
    assert len({digest("a", 1), digest("a", "1"), digest(["a", 1]), digest("a")}) == 4


def test_writers_with_the_same_process_id_do_not_meet(tmp_path, monkeypatch):
    monkeypatch.setattr("os.getpid", lambda: 7)
    monkeypatch.setattr("time.monotonic_ns", lambda: 7)
    with written_aside(tmp_path / "a") as first, written_aside(tmp_path / "a") as second:
        first.write(b"same")
        second.write(b"same")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"same"]
