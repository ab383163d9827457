"""Follow a job of a Ray cluster to its end, over connections that break.

Guarantees, each asserted in tests/cluster/test_follow.py:
- every line of the output is shown once, however often the connection breaks;
- a broken connection ends nothing while the cluster still says how the job is;
- without any answer for five minutes, InfrastructureError says that the job may still run.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ray.exceptions import AuthenticationError
from ray.job_submission import JobInfo, JobStatus, JobSubmissionClient

from cluster.view import RunView
from trainer.errors import InfrastructureError

GIVE_UP_S = 300.0

_POLL_S = 0.5
_LONGEST_PAUSE_S = 10.0
_FINAL = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED)

# Errors of requests are OSErrors.
_BROKEN = (OSError, RuntimeError, AuthenticationError)


class _Output:
    """The lines of a job, which every new connection sends from the first one on."""

    def __init__(self, view: RunView) -> None:
        self.view = view
        self.shown = 0

    async def follow(self, client: JobSubmissionClient, name: str) -> None:
        """Show what is new until the stream ends."""
        number = 0
        rest = ""
        async for chunk in client.tail_job_logs(name):
            *lines, rest = (rest + chunk).split("\n")
            for line in lines:
                number += 1
                self._show(number, line)
        if rest:
            self._show(number + 1, rest)

    def _show(self, number: int, line: str) -> None:
        if number > self.shown:
            self.shown = number
            self.view.note(line)


def follow(
    client: JobSubmissionClient,
    name: str,
    *,
    address: str,
    view: RunView,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> JobInfo:
    """Show the output of job `name` by `view.note`, line by line; how the job ended.

    Raises InfrastructureError where the cluster at `address` has not answered for GIVE_UP_S.
    """
    output = _Output(view)
    pause_s = _POLL_S
    silent_since_s: float | None = None
    while True:
        shown = output.shown
        fault = _stream(output, client, name)
        if output.shown > shown or not fault:
            pause_s = _POLL_S
        info = _ask(client, name)
        if info is not None and info.status in _FINAL:
            _show_rest(output, client, name, address, fault)
            return info
        if fault and pause_s == _POLL_S:
            view.warning(f"the connection to {address} broke ({fault}); connecting again")
        if info is not None:
            silent_since_s = None
        elif silent_since_s is None:
            silent_since_s = clock()
        elif clock() - silent_since_s > GIVE_UP_S:
            raise InfrastructureError(
                f"{address} has not answered for {clock() - silent_since_s:.0f} s; the job {name} "
                f"may still run. Look with `ray job logs {name} --address {address}`"
            )
        sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def _stream(output: _Output, client: JobSubmissionClient, name: str) -> str:
    """Show output until the stream ends; why it broke off, or nothing."""
    try:
        with _connection_errors():
            asyncio.run(output.follow(client, name))
    except _BROKEN as error:
        return str(error) or type(error).__name__
    return ""


@contextmanager
def _connection_errors() -> Iterator[None]:
    """Turn errors of aiohttp, which Ray's client lets through, into ConnectionError."""
    try:
        yield
    except Exception as error:
        # By name: the library is Ray's own dependency and not ours.
        if type(error).__module__.partition(".")[0] == "aiohttp":
            raise ConnectionError(str(error) or type(error).__name__) from error
        raise


def _ask(client: JobSubmissionClient, name: str) -> JobInfo | None:
    """The state of the job, or None without an answer."""
    try:
        return client.get_job_info(name)
    except _BROKEN:
        return None


def _show_rest(
    output: _Output, client: JobSubmissionClient, name: str, address: str, fault: str
) -> None:
    """After the end: show what was missed when the stream broke off."""
    if fault and _stream(output, client, name):
        output.view.warning(
            f"the end of the output is missing; see `ray job logs {name} --address {address}`"
        )
