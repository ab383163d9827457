"""Shares on one host, and on their way to another."""

import os

import pytest

from tests.trainer.keeping.shares import keep
from trainer.keeping.folder import (
    check_share,
    clean,
    install_share,
    list_shares,
    read_share,
    remove_older,
    run_folder_in_memory,
)
from trainer.keeping.header import ShareDamaged, torn


@pytest.fixture
def folder(tmp_path):
    keep(tmp_path / "here", range(1, 4))
    return tmp_path / "here"


def _steps(folder):
    return sorted(found.header.step for found in list_shares(folder))


def _newest(folder):
    return max(list_shares(folder), key=lambda found: found.header.step)


def test_lists_what_is_whole(folder):
    assert _steps(folder) == [2, 3]
    newest = _newest(folder)
    assert check_share(newest.path) == newest.header
    with newest.path.open("r+b") as file:
        file.write(torn(newest.header.sequence))
    assert _steps(folder) == [2]
    assert list_shares(folder / "elsewhere") == []


def test_a_share_that_is_cut_off_or_changed_is_damaged(folder):
    newest = _newest(folder)
    content = newest.path.read_bytes()
    positions = (newest.header.payload_begin, newest.header.total_bytes - 1, 4096, 4100)
    for position in positions:
        newest.path.write_bytes(
            content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]
        )
        with pytest.raises(ShareDamaged):
            check_share(newest.path)
    newest.path.write_bytes(content[: newest.header.total_bytes - 1])
    assert _steps(folder) == [2]


def test_a_share_goes_to_another_host_and_the_newest_copies_stay(folder, tmp_path):
    there = tmp_path / "there"
    for step in range(5, 9):
        clean(folder)
        keep(folder, range(step, step + 1))
        (source,) = list_shares(folder)
        installed = install_share(there, read_share(source.path))
        assert check_share(installed) == source.header
    assert _steps(there) == [7, 8]


def test_a_share_that_changes_while_it_is_read_is_not_installed(folder, tmp_path):
    source = _newest(folder)
    blocks = read_share(source.path)

    def disturbed():
        yield next(blocks)
        with source.path.open("r+b") as file:
            file.write(torn(source.header.sequence))
        yield from blocks

    with pytest.raises(ShareDamaged):
        install_share(tmp_path / "there", disturbed())
    assert list((tmp_path / "there").rglob("*-0*/.*")) == []
    assert list_shares(tmp_path / "there") == []


def test_what_arrives_damaged_leaves_nothing_behind(folder, tmp_path):
    content = b"".join(read_share(_newest(folder).path))
    for broken in (content[:-8], content[:-1] + b"\x07", content[:5000], b"", b"x" * 5000):
        with pytest.raises(ShareDamaged):
            install_share(tmp_path / "there", [broken])
    files = [path for path in (tmp_path / "there").rglob("*") if path.is_file()]
    assert files == []


def test_earlier_starts_are_removed_and_in_the_end_everything(folder):
    remove_older(folder, 1)
    assert _steps(folder) == [2, 3]
    remove_older(folder, 2)
    assert _steps(folder) == []
    clean(folder)
    clean(folder)
    assert not folder.exists()


def test_a_folder_of_somebody_else_is_refused(folder, tmp_path):
    if os.getuid() == 0:
        os.chown(folder, 12345, -1)
        with pytest.raises(PermissionError, match="belongs to user 12345"):
            list_shares(folder)
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    with pytest.raises(PermissionError, match="is a link"):
        list_shares(link)


def test_every_run_has_a_folder_of_its_own(tmp_path):
    here, there = (
        run_folder_in_memory("/dev/shm", name="a", run_root=tmp_path / place / "a")
        for place in ("x", "y")
    )
    assert here != there
    assert here.parent == there.parent
    assert here.name.startswith("braid-a-")
