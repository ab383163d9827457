"""Files of the cache: keys, locks between processes, and writes that appear whole or not at all."""

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

from trainer.errors import InfrastructureError, ResourceError

logger = logging.getLogger("braid")

LOCK_DEADLINE_S = 3600.0
REPORT_INTERVAL_S = 30.0
POLL_S = 0.1

_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOENT, errno.EEXIST)
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


def digest(*parts: Any) -> str:
    """Short hexadecimal name of values that JSON can hold; equal values have equal names."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full or read-only disk, met while writing below `path`, into a ResourceError."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise ResourceError(
                f"the disk of {path} is full; free some space, or point data.cache_dir elsewhere"
            ) from error
        if error.errno in _REFUSED:
            raise ResourceError(
                f"{path} cannot be written ({error.strerror}); point data.cache_dir at a folder "
                "that can"
            ) from error
        raise


def make_folder(path: Path) -> Path:
    """Create `path` with its parents. Raises ResourceError where that is not possible."""
    with disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def written_aside(path: Path) -> Iterator[IO[bytes]]:
    """A file that becomes `path` once it is on disk; after an error `path` is as it was.

    Raises ResourceError where the disk is full or cannot be written.
    """
    # Containers that share the folder may have equal process ids.
    aside = path.with_name(f".{path.name}.{uuid4().hex}")
    with disk_errors(path):
        try:
            with aside.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)


@contextlib.contextmanager
def claim(path: Path) -> Iterator[bool]:
    """Hold the lock file `path`, and say whether that succeeded. Ends with the process at latest.

    A file system without locks grants every claim: whoever uses this must bear two owners.
    """
    with _open_lock(path) as file:
        yield _lock(file)


@contextlib.contextmanager
def locked(path: Path, purpose: str) -> Iterator[None]:
    """Wait until no other process holds the lock file `path`, then hold it.

    Raises InfrastructureError naming `purpose` after an hour.
    """
    with _open_lock(path) as file:
        wait_until(
            lambda: _lock(file),
            what=f"another process is {purpose} (lock {path})",
            deadline_s=LOCK_DEADLINE_S,
        )
        yield


def wait_until(done: Callable[[], bool], *, what: str, deadline_s: float) -> None:
    """Poll `done`, saying every half minute what is waited for.

    Raises InfrastructureError after `deadline_s`.
    """
    begin_s = said_s = time.monotonic()
    while not done():
        now_s = time.monotonic()
        if now_s - begin_s > deadline_s:
            raise InfrastructureError(
                f"gave up after {deadline_s:.0f} s: {what}. See whether that process still works."
            )
        if now_s - said_s > REPORT_INTERVAL_S:
            logger.info("waiting for %.0f s: %s", now_s - begin_s, what)
            said_s = now_s
        time.sleep(POLL_S)


def _open_lock(path: Path) -> IO[bytes]:
    with disk_errors(path):
        return path.open("ab")


def _lock(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        return error.errno in _NO_LOCKS
    return True
