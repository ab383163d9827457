"""Snapshots that leave a host's memory for the disk."""

import shutil

import torch

from tests.trainer.keeping.shares import RUN, keep, mixed_state, snapshots_of
from trainer.checkpoint.loading import load_first
from trainer.keeping.folder import (
    check_share,
    list_shares,
    rank_folder,
)
from trainer.keeping.rescue import keep_newest, rescue
from trainer.keeping.source import find_snapshots


def _steps(folder):
    return sorted(found.header.step for found in list_shares(folder))


def test_the_newest_steps_and_those_with_copies_come_to_disk(tmp_path):
    memory, disk = tmp_path / "memory", tmp_path / "disk"
    keep(memory, range(1, 4))
    assert {header.step for header in rescue(memory, disk)} == {2, 3}
    assert _steps(disk) == [2, 3]
    for found in list_shares(disk):
        assert check_share(found.path) == found.header
    # An own share of a step that another host has copies of, older than the newest two.
    (oldest,) = (found for found in list_shares(memory) if found.header.step == 2)
    held = oldest.path.with_name("slot-8")
    shutil.copy(oldest.path, held)
    keep(tmp_path / "later", range(7, 9))
    for found in list_shares(tmp_path / "later"):
        shutil.copy(found.path, oldest.path.with_name(found.path.name))
    assert _steps(memory) == [2, 7, 8]
    assert sorted(header.step for header in rescue(memory, disk / "again")) == [7, 8]
    theirs = rank_folder(memory, generation=1, rank=5, ranks=6)
    theirs.mkdir(parents=True)
    shutil.copy(held, theirs / "copy-00000002")
    assert 2 in {header.step for header in rescue(memory, disk / "copied")}


def test_islands_come_too_and_nothing_is_written_twice(tmp_path):
    memory, disk = tmp_path / "memory", tmp_path / "disk"
    for number in range(2):
        keep(memory / f"island-{number}", range(4, 6))
    assert len(rescue(memory, disk)) == 4
    written = {path: path.stat().st_mtime_ns for path in disk.rglob("copy-*")}
    assert sorted(path.relative_to(disk).parts[0] for path in written) == [
        *["island-0"] * 2,
        *["island-1"] * 2,
    ]
    assert len(rescue(memory, disk)) == 4
    assert {path: path.stat().st_mtime_ns for path in disk.rglob("copy-*")} == written
    assert not list(disk.rglob(".incoming*"))


def test_what_is_damaged_stays_behind(tmp_path):
    memory, disk = tmp_path / "memory", tmp_path / "disk"
    keep(memory, range(1, 4))
    (newest,) = (found for found in list_shares(memory) if found.header.step == 3)
    with newest.path.open("r+b") as file:
        file.seek(newest.header.payload_begin)
        file.write(b"damaged!")
    assert [header.step for header in rescue(memory, disk)] == [2]
    assert _steps(disk) == [2]


def test_a_run_goes_on_from_what_came_to_disk(tmp_path):
    memory, disk = tmp_path / "memory", tmp_path / "disk"
    keep(memory, range(1, 4))
    rescue(memory, disk)
    shutil.rmtree(memory)
    found = find_snapshots(
        memory, run=RUN, valid_from=1, rank=0, host="here", group=None, rescued=disk
    )
    assert [source.step for source in found] == [3, 2]
    assert found[0].path.is_relative_to(disk)
    state = mixed_state(0)
    assert load_first(state, found, None).step == 3
    assert all(torch.equal(state[name], tensor) for name, tensor in mixed_state(3).items())


def test_the_last_start_that_was_rescued_stays(tmp_path):
    disk = tmp_path / "disk"
    for generation in (2, 5):
        memory = tmp_path / f"memory-{generation}"
        snapshots = snapshots_of(memory, mixed_state(0), generation=generation)
        snapshots.capture(generation, mixed_state(0), {"step": generation})
        snapshots.close()
        rescue(memory, disk)
    assert _steps(disk) == [2, 5]
    keep_newest(disk)
    assert _steps(disk) == [5]
    keep_newest(tmp_path / "nothing")
