"""The tokenising process: `python -m trainer.data.tokenise`, told on standard input what to do.

It runs beside the training processes and ends when its parent does. Until training can begin it has
their priority, since they wait for it; from then on the lowest. A failure goes to standard output
as one JSON line, and into the store for other processes.
"""

import contextlib
import os
import sys

from trainer.data.failure import Failure
from trainer.data.tokenising import Assignment, Filler
from trainer.errors import BraidError, ExitCode, ResourceError

LOWEST_PRIORITY = 19


def main() -> int:
    """Fill the store that standard input describes; returns the exit code."""
    parent = os.getppid()
    assignment = Assignment.decode(sys.stdin.read())
    try:
        Filler(assignment).fill(
            lambda: os.getppid() == parent, on_first_group=lambda: os.nice(LOWEST_PRIORITY)
        )
    except BraidError as error:
        failure = Failure.of(error)
        # A full disk may refuse this file too; the parent still reads the line below.
        with contextlib.suppress(ResourceError):
            failure.leave(assignment.failure_path)
        sys.stdout.write(failure.encode() + "\n")
        return failure.code
    return int(ExitCode.DONE)


if __name__ == "__main__":
    sys.exit(main())
