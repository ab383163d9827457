"""The guarantees of cluster/failure.py."""

import errno

import pytest

from cluster.failure import Failure, Kind, failure_of, first_failure, only_echoes
from comms.outer.link import IslandLostError
from trainer.errors import DataError, ExitCode, InfrastructureError
from trainer.status import Moment

MOMENT = Moment(phase="training", step=7, since_s=0.0)


def failure(
    rank: int, kind: Kind = "raised", time_s: float = 0.0, communication: bool = False
) -> Failure:
    return Failure(
        kind=kind,
        rank=rank,
        host=f"host-{rank}",
        phase="training",
        step=1,
        error="",
        exit_code=ExitCode.INFRASTRUCTURE,
        time_s=time_s,
        communication=communication,
    )


def described(error: BaseException) -> Failure:
    return failure_of(error, moment=MOMENT, rank=3, host="h", now_s=5.0)


def test_a_dead_process_is_blamed_before_an_earlier_exception() -> None:
    dead = failure(2, "died", time_s=9.0)
    assert first_failure([failure(0, time_s=1.0), dead]) is dead


def test_own_exceptions_come_before_silence_and_silence_before_echoes() -> None:
    own, silent = failure(0, time_s=9.0), failure(1, "silent", time_s=5.0)
    echo = failure(2, time_s=1.0, communication=True)
    assert first_failure([echo, silent, own]) is own
    assert first_failure([echo, silent]) is silent


def test_among_equals_the_earliest_then_the_lowest_rank() -> None:
    late, early, low = failure(0, time_s=2.0), failure(3, time_s=1.0), failure(2, time_s=1.0)
    assert first_failure([late, early]) is early
    assert first_failure([late, early, low]) is low


def test_no_failure_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        first_failure([])


def test_own_errors_keep_their_code_through_causes() -> None:
    outer = RuntimeError("worker failed")
    outer.__cause__ = DataError("line 7 is not JSON")
    found = described(outer)
    assert found.exit_code is ExitCode.DATA
    assert found.error == "line 7 is not JSON"
    assert (found.phase, found.step, found.rank) == ("training", 7, 3)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), ExitCode.RESOURCES),
        (OSError(errno.ENOSPC, "No space left on device"), ExitCode.RESOURCES),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA"), ExitCode.RESOURCES),
        (KeyError("x"), ExitCode.INFRASTRUCTURE),
        (SystemExit(5), ExitCode.INFRASTRUCTURE),
    ],
)
def test_exit_code_of_foreign_errors(error: BaseException, code: ExitCode) -> None:
    assert described(error).exit_code is code


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1"),
        RuntimeError("Timed out waiting 60000ms for recv operation to complete"),
        ConnectionResetError("reset"),
        type("DistBackendError", (RuntimeError,), {})("NCCL error"),
        IslandLostError("an island is out of reach"),
    ],
)
def test_lost_connections_are_echoes(error: Exception) -> None:
    assert described(error).communication
    wrapped = InfrastructureError("a rank is gone")
    wrapped.__cause__ = error
    assert only_echoes([described(wrapped)])


def test_other_errors_are_no_echoes() -> None:
    assert not described(ValueError("shape mismatch")).communication
    assert not only_echoes([described(ValueError("x")), described(ConnectionResetError("y"))])


def test_a_cycle_of_causes_ends() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert described(first).exit_code is ExitCode.INFRASTRUCTURE
