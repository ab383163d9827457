import os
import re
from pathlib import Path

import pytest

from offload.disk.files import PREFIX, DiskFailure, ScratchFile, remove_leftovers
from offload.disk.tier import page_aligned


def test_a_file_has_no_name_and_leftovers_are_removed(tmp_path):
    for number in range(2):
        (tmp_path / f"{PREFIX}{number}").touch()
    (tmp_path / "notes.txt").touch()
    file = ScratchFile(tmp_path, 8192)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert remove_leftovers(tmp_path) == 0
    file.close()


def test_bytes_come_back_in_order(tmp_path):
    file = ScratchFile(tmp_path, 1 << 16)
    one, two = page_aligned(4096).fill_(1), page_aligned(8192).fill_(2)
    file.write([one.numpy().data, two.numpy().data], 4096)
    back = page_aligned(12288)
    file.read([back[:8192].numpy().data, back[8192:].numpy().data], 4096)
    assert back[:4096].eq(1).all()
    assert back[4096:].eq(2).all()
    file.close()


def test_a_disk_without_room_is_named(tmp_path):
    with pytest.raises(DiskFailure, match=rf"{re.escape(str(tmp_path))}.*bytes are free"):
        ScratchFile(tmp_path, 1 << 55)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("directory", ["/proc/nowhere", "/dev/null/folder"])
def test_a_directory_that_cannot_be_written_is_named(directory):
    with pytest.raises(DiskFailure, match=f"under {directory}: .*name a directory"):
        ScratchFile(Path(directory), 4096)


def test_a_truncated_file_is_noticed(tmp_path):
    file = ScratchFile(tmp_path, 1 << 16)
    os.ftruncate(file._fd, 0)
    with pytest.raises(DiskFailure, match="something truncated it"):
        file.read([page_aligned(4096).numpy().data], 0)
    file.close()
