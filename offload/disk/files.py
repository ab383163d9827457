"""Preallocated scratch files that no crash leaves behind.

A file has no name while it is used: it is unlinked as soon as it is open, and its bytes are freed
by the kernel when the process ends, however it ends. A crash between the two leaves an empty file,
which the next start removes.
"""

import errno
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from offload.disk.extents import PAGE_BYTES

PREFIX = "braid-scratch-"


class DiskFailure(RuntimeError):
    """A disk refused, failed or did not answer; says which, and what can be done."""


class ScratchFile:
    """`capacity_bytes` on one disk, read and written from any thread.

    Direct I/O where the file system has it, else through the page cache.
    """

    def __init__(self, directory: Path, capacity_bytes: int) -> None:
        self.directory = directory
        self.capacity_bytes = capacity_bytes
        remove_leftovers(directory)
        self._fd, self.direct = _open_unnamed(directory)
        try:
            os.posix_fallocate(self._fd, 0, capacity_bytes)
        except OSError as error:
            os.close(self._fd)
            raise DiskFailure(_no_room(directory, capacity_bytes, error)) from error

    def read(self, views: Sequence[memoryview], offset: int) -> None:
        """Fill `views`, one after the other, from `offset` on."""
        self._all("read", list(views), offset)

    def write(self, views: Sequence[memoryview], offset: int) -> None:
        """Write `views`, one after the other, from `offset` on."""
        self._all("write", list(views), offset)

    def close(self) -> None:
        """Free the file's bytes."""
        os.close(self._fd)

    def _all(self, verb: Literal["read", "write"], views: list[memoryview], offset: int) -> None:
        """Calls may transfer less than asked: repeat with what is left."""
        transfer = os.preadv if verb == "read" else os.pwritev
        while views:
            try:
                moved_bytes = transfer(self._fd, views, offset)
            except OSError as error:
                raise DiskFailure(
                    f"cannot {verb} {sum(map(len, views))} bytes under {self.directory}: "
                    f"{error.strerror}; look at the disk, or name another directory"
                ) from error
            if moved_bytes == 0:
                raise DiskFailure(
                    f"the scratch file under {self.directory} ends at {offset} bytes, "
                    f"{self.capacity_bytes} were preallocated; something truncated it"
                )
            offset += moved_bytes
            views = _rest(views, moved_bytes)


def remove_leftovers(directory: Path) -> int:
    """Remove what starts that did not survive left under `directory`; how many files."""
    removed = 0
    for path in directory.glob(f"{PREFIX}*"):
        # Another process may be between creating and unlinking it, and will not miss the name.
        path.unlink(missing_ok=True)
        removed += 1
    return removed


def _open_unnamed(directory: Path) -> tuple[int, bool]:
    path = directory / f"{PREFIX}{uuid.uuid4().hex}"
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    try:
        directory.mkdir(parents=True, exist_ok=True)
        fd, direct = _open(path, flags)
        path.unlink(missing_ok=True)
    except OSError as error:
        raise DiskFailure(
            f"cannot create a scratch file under {directory}: {error.strerror}; "
            "name a directory that exists on a local disk and can be written"
        ) from error
    return fd, direct


def _open(path: Path, flags: int) -> tuple[int, bool]:
    try:
        return os.open(path, flags | os.O_DIRECT, 0o600), True
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    return os.open(path, flags, 0o600), False


def _no_room(directory: Path, capacity_bytes: int, error: OSError) -> str:
    statistics = os.statvfs(directory)
    free_bytes = statistics.f_bavail * statistics.f_frsize
    return (
        f"cannot preallocate {capacity_bytes} bytes under {directory}: {error.strerror}, "
        f"{free_bytes} bytes are free; free some, or name another or one more directory"
    )


def _rest(views: Sequence[memoryview], moved_bytes: int) -> list[memoryview]:
    left: list[memoryview] = []
    for view in views:
        if moved_bytes >= len(view):
            moved_bytes -= len(view)
        else:
            left.append(view[moved_bytes:])
            moved_bytes = 0
    return left


def round_up_to_pages(num_bytes: int) -> int:
    """The smallest whole number of pages that holds `num_bytes`."""
    return -(-num_bytes // PAGE_BYTES) * PAGE_BYTES
