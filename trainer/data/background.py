"""Start the tokenising process, notice how it ended, and end it."""

import contextlib
import subprocess
import sys
from pathlib import Path

from trainer.data.cache import disk_errors
from trainer.data.failure import Failure
from trainer.data.tokenising import Assignment
from trainer.errors import ExitCode, ResourceError

PACKAGE_ROOT = Path(__file__).resolve().parents[2]
END_DEADLINE_S = 5.0


class BackgroundTokeniser:
    """A running tokenising process. Its own process, so that no interpreter lock is shared."""

    def __init__(self, assignment: Assignment) -> None:
        self._failure_path = assignment.failure_path
        self._failure: Failure | None = None
        with disk_errors(Path(assignment.store)):
            self._process = subprocess.Popen(
                [sys.executable, "-m", "trainer.data.tokenise"],
                cwd=PACKAGE_ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._process.stdin as pipe:
            pipe.write(assignment.encode())

    @property
    def process_id(self) -> int:
        """Its process id."""
        return self._process.pid

    def failure(self) -> Failure | None:
        """How it failed, once it has; the first call leaves that in the store too."""
        code = self._process.poll()
        if self._failure is None and code is not None and code != ExitCode.DONE:
            assert self._process.stdout is not None
            said = self._process.stdout.read()
            self._failure = Failure.decode(said) if said else _unexplained(code)
            with contextlib.suppress(ResourceError):
                self._failure.leave(self._failure_path)
        return self._failure

    def close(self) -> None:
        """End it if it runs, and wait until it is gone."""
        self._process.terminate()
        try:
            self._process.wait(END_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def _unexplained(code: int) -> Failure:
    how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return Failure(
        int(ExitCode.INFRASTRUCTURE),
        f"the tokenising process {how}; its messages are in the log of the process that started it "
        "(a lack of memory shows in the kernel's log). What is tokenised is kept: start again",
    )
