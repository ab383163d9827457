"""Locks on files of the run folder that end with the process that holds them."""

import errno
import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from trainer.errors import InfrastructureError

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
_POLL_S = 0.1

WAIT_S = 60.0
"""A driver that dies takes its ranks along within seconds, a cut-off host within a minute."""


def try_lock(file: IO[bytes]) -> bool:
    """Whether this process holds the lock now. A file system without locks lets everyone in."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


@contextmanager
def only_writer(root: Path, *, wait_s: float = WAIT_S) -> Iterator[None]:
    """Be the only process inside the context that writes steps and checkpoints of the run; for
    rank 0. What an earlier driver left training is waited for: its ranks are about to end.

    Raises InfrastructureError where one goes on for longer than `wait_s`.
    """
    root.mkdir(parents=True, exist_ok=True)
    until_s = time.monotonic() + wait_s
    with (root / ".writer").open("ab") as file:
        while not try_lock(file):
            if time.monotonic() > until_s:
                raise InfrastructureError(
                    f"a rank 0 of an earlier start still writes to {root} after {wait_s:g} s; end "
                    "it (its process is in the last ranks_started of events.jsonl), then start "
                    "the run again"
                )
            time.sleep(_POLL_S)
        yield
