"""A process that outlives the controller of a run."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from cluster.rescuer import Charge, Rescuer, Watch
from tests.trainer.keeping.shares import RUN, keep
from trainer.keeping.folder import list_shares
from trainer.keeping.record import Record, write_record
from trainer.run_folder import RunFolder, read_lines

RECORD = Record(run=RUN, generation=1, valid_from=1)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """Of a run that has snapshots in memory."""
    folder = RunFolder(tmp_path / "run")
    keep(tmp_path / "memory", range(1, 4))
    write_record(folder.snapshots, RECORD)
    return folder


def watchers(folder: RunFolder) -> list[psutil.Process]:
    """Of this run, that live."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        if any(str(folder.root) in word for word in words) and "cluster.rescuer" in words:
            found.append(process)
    return found


def guarding(folder: RunFolder, wait_s: float) -> Rescuer:
    memory = str(folder.root.parent / "memory")
    return Rescuer(Charge(run=str(folder.root), memory=memory, wait_s=wait_s), sys.path)


def await_end(folder: RunFolder) -> None:
    until_s = time.monotonic() + 150
    while watchers(folder):
        assert time.monotonic() < until_s
        time.sleep(0.02)


@contextmanager
def abandoned(folder: RunFolder, wait_s: float) -> Iterator[None]:
    """Inside, whoever started it has gone; it has ended behind."""
    guard = guarding(folder, wait_s)
    guard.beat()
    guard._pipe.close()
    # Else it may be looked for just when its child takes its place.
    guard._process.wait()
    yield
    await_end(folder)


def test_snapshots_are_saved_where_no_controller_comes_back(folder: RunFolder) -> None:
    with abandoned(folder, 0.01):
        pass
    assert sorted(found.header.step for found in list_shares(folder.rescued)) == [2, 3]
    (told,) = read_lines(folder.events)
    assert (told["kind"], told["step"]) == ("snapshots_rescued", 3)
    assert "nothing was heard of the driver for 0.01 s" in told["cause"]


def test_nothing_is_saved_where_one_comes_back_or_the_run_has_ended(folder: RunFolder) -> None:
    guard = guarding(folder, 0.01)
    guard.release()
    guard._process.wait()
    await_end(folder)
    with abandoned(folder, 60.0):
        generation = 1
        # It counts from when it notices that it is alone, which takes a moment.
        while watchers(folder):
            generation += 1
            write_record(folder.snapshots, replace(RECORD, generation=generation))
            time.sleep(0.1)
    folder.snapshots.unlink()
    with abandoned(folder, 0.01):
        pass
    assert not folder.rescued.exists()
    assert not folder.events.exists()


def test_a_driver_that_falls_silent_is_as_good_as_gone(folder: RunFolder) -> None:
    charge = Charge(run=str(folder.root), memory=str(folder.root.parent / "memory"), wait_s=60.0)
    watch = Watch(charge, host="here")
    assert not watch.look(1000.0, ended=False)
    watch.heard(0.0)
    for now_s in (10.0, 60.0, 65.0):
        assert not watch.look(now_s, ended=False)
    # Somebody trains, and is heard of again.
    folder.metrics.write_text("a step\n")
    assert not watch.look(70.0, ended=False)
    assert not watch.look(129.0, ended=False)
    watch.heard(129.5)
    assert not watch.look(135.0, ended=False)
    assert not watch.look(194.0, ended=False)
    assert not folder.rescued.exists()
    # Saved once, whatever follows; it stays while it may hear.
    assert not watch.look(196.0, ended=False)
    assert len(read_lines(folder.events)) == 1
    assert not watch.look(400.0, ended=False)
    assert watch.look(401.0, ended=True)
    assert len(read_lines(folder.events)) == 1
    assert sorted(found.header.step for found in list_shares(folder.rescued)) == [2, 3]


def test_a_disk_that_refuses_is_told(folder: RunFolder) -> None:
    folder.rescued.write_text("in the way")
    with abandoned(folder, 0.01):
        pass
    (told,) = read_lines(folder.events)
    assert told["kind"] == "rescue_failed"
    assert "could not be saved" in told["cause"]
