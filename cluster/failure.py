"""Which failure came first, and what it means for the exit code. Pure decisions.

Guarantees, each asserted in tests/cluster/test_failure.py:
- a process that died or hung is blamed before one that raised;
- an exception of a rank's own is blamed before a silent process, and that before an exception
  that says no more than that a peer is gone;
- among equals the earliest is blamed, then the lowest rank;
- the exit code is that of our own error anywhere in the chain of causes, else memory and disk
  exhaustion are 3 and all the rest is 10.
"""

import errno
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from trainer.errors import BraidError, ExitCode
from trainer.status import Moment

Kind = Literal["died", "raised", "silent", "hung"]

_PEER_ERRORS = frozenset(
    {
        "DistError",
        "DistBackendError",
        "DistNetworkError",
        "DistStoreError",
        "ConnectionError",
        "IslandLostError",
    }
)
_PEER_MESSAGES = re.compile(
    r"closed by peer|reset by peer|broken pipe|connection refused|timed out waiting"
    r"|connectfullmesh failed|socket timeout|nccl (communicator|error)|remote process exited"
    r"|process group .* aborted",
    re.IGNORECASE,
)
_MEMORY_ERRORS = frozenset({"OutOfMemoryError", "MemoryError"})


@dataclass(frozen=True, kw_only=True)
class Failure:
    """One process that failed, as far as it is known."""

    kind: Kind
    """`died`: the process is gone. `raised`: it caught an exception. `silent`: no answer.
    `hung`: its work stands still."""

    rank: int
    host: str
    phase: str
    step: int
    error: str
    """Type and message."""

    exit_code: ExitCode
    time_s: float
    """Seconds since the epoch."""

    last_lines: tuple[str, ...] = ()
    """End of the process's log."""

    detected_s: float | None = None
    """From the first sign of it until it was found; None where that is not known."""

    evidence: tuple[str, ...] = ()
    """What else speaks for it, a sentence each."""

    host_lost: bool = False
    """Whether its whole host is gone."""

    communication: bool = False
    """Whether the error is no more than the echo of another rank's end."""


class WorkersFailed(Exception):
    """At least one worker failed; `failures` are all that are known."""

    def __init__(self, failures: Sequence[Failure]) -> None:
        super().__init__("; ".join(f"rank {f.rank} on {f.host}: {f.error}" for f in failures))
        self.failures = tuple(failures)


class GaveUp(WorkersFailed):
    """A fault after which the run is not started again, although a restart might help."""

    def __init__(self, failures: Sequence[Failure], *, why: str, story: str, tried: int) -> None:
        super().__init__(failures)
        self.why = why
        self.story = story
        self.tried = tried
        """Recoveries before this fault."""


def failure_of(
    error: BaseException, *, moment: Moment, rank: int, host: str, now_s: float
) -> Failure:
    """Describe an exception that ended training in the process `rank` on `host`."""
    chain = tuple(_causes(error))
    own = next((link for link in chain if isinstance(link, BraidError)), None)
    return Failure(
        kind="raised",
        rank=rank,
        host=host,
        phase=moment.phase,
        step=moment.step,
        error=str(own) if own else f"{type(error).__name__}: {error}",
        exit_code=own.exit_code if own else _code_of(chain),
        time_s=now_s,
        communication=any(_of_a_peer(link) for link in chain),
    )


def first_failure(failures: Sequence[Failure]) -> Failure:
    """The one to blame. Raises ValueError where there is none."""
    if not failures:
        raise ValueError("first_failure needs at least one failure")
    return min(failures, key=lambda failure: (_blame(failure), failure.time_s, failure.rank))


def only_echoes(failures: Sequence[Failure]) -> bool:
    """Whether the cause is still unknown: every failure so far is a lost connection."""
    return all(failure.communication for failure in failures)


def _blame(failure: Failure) -> int:
    if failure.kind in ("died", "hung"):
        return 0
    if failure.kind == "silent":
        return 2
    return 3 if failure.communication else 1


def _code_of(chain: Sequence[BaseException]) -> ExitCode:
    for link in chain:
        if type(link).__name__ in _MEMORY_ERRORS:
            return ExitCode.RESOURCES
        if isinstance(link, OSError) and link.errno in (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM):
            return ExitCode.RESOURCES
    return ExitCode.INFRASTRUCTURE


def _of_a_peer(error: BaseException) -> bool:
    # By name, since torch is not imported here.
    if any(kind.__name__ in _PEER_ERRORS for kind in type(error).__mro__):
        return True
    return isinstance(error, RuntimeError) and bool(_PEER_MESSAGES.search(str(error)))


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__
