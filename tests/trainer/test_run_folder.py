"""Lines are whole, files are replaced as a whole, and a status can be read while it changes."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.disks import files_up_to
from trainer.config import RunConfig
from trainer.run_folder import (
    RunFolder,
    append_event,
    append_line,
    is_full,
    read_lines,
    write_atomically,
)
from trainer.status import Status


def test_a_run_folder_is_absolute_and_named_by_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = RunFolder.of(RunConfig(name="first", dir="runs"))
    assert folder.root == tmp_path / "runs" / "first"
    assert folder.log("worker", 3) == folder.root / "logs" / "worker-3.log"


def test_lines_of_several_writers_do_not_mix(tmp_path):
    path = tmp_path / "deep" / "lines.jsonl"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: append_line(path, {"n": n, "pad": "x" * 2000}), range(200)))
    assert sorted(line["n"] for line in read_lines(path)) == list(range(200))


def test_a_line_for_which_there_is_no_room_leaves_nothing(tmp_path):
    path = tmp_path / "lines.jsonl"
    append_line(path, {"n": 1})
    full = pytest.raises(OSError, match="no space left for a whole line")
    with files_up_to(20), full as refused:
        append_line(path, {"n": 2, "pad": "x" * 100})
    assert is_full(refused.value)
    append_line(path, {"n": 3})
    assert [line["n"] for line in read_lines(path)] == [1, 3]


def test_lines_are_read_as_far_as_they_are_whole(tmp_path):
    path = tmp_path / "lines.jsonl"
    assert read_lines(path) == []
    path.write_text('{"n": 1')
    assert read_lines(path) == []
    path.write_text('{"n": 1}\n{"text": "a\u2028b"}\n{"n": 3')
    assert read_lines(path) == [{"n": 1}, {"text": "a\u2028b"}]
    path.write_text('{"n": 1\n{"n": 2}\n')
    with pytest.raises(ValueError, match="line 1"):
        read_lines(path)


def test_an_event_says_when_what_and_where(tmp_path):
    append_event(tmp_path / "events.jsonl", now_s=5.0, kind="resumed", step=3, path="p")
    event = {"time": 5.0, "kind": "resumed", "step": 3, "path": "p"}
    assert read_lines(tmp_path / "events.jsonl") == [event]


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "file.txt"
    write_atomically(path, "old")
    write_atomically(path, "new")
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]


def test_a_status_keeps_its_step_until_told_otherwise():
    ticks = iter([1.0, 2.0, 3.0])
    status = Status(clock=lambda: next(ticks))
    status.enter("training", 4)
    status.enter("stopping")
    moment = status.read()
    assert (moment.phase, moment.step, moment.since_s) == ("stopping", 4, 3.0)
