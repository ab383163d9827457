"""The guarantees of comms/compression/runner.py, one by one."""

import contextlib
import threading

import pytest
import torch
import torch.distributed as dist

from comms.compression.method import Phases
from comms.compression.runner import Runner

FLAT = torch.zeros(1)


class _Work(dist.Work):
    """A collective that completes when the test says so."""

    def __init__(self, error: str = "") -> None:
        super().__init__()
        self.gate = threading.Event()
        self._error = error

    def is_completed(self) -> bool:
        return self.gate.is_set()

    def wait(self, *arguments: object) -> bool:
        assert self.gate.wait(20)
        if self._error:
            raise RuntimeError(self._error)
        return True


def _phases(name: str, works: list[_Work], log: list[str]) -> Phases:
    for number, work in enumerate(works):
        log.append(f"{name}{number}")
        yield work
    log.append(f"{name} done")
    return True


def _submit(runner: Runner, name: str, works: list[_Work], log: list[str]):
    return runner.submit(_phases(name, works, log), FLAT, serial=len(works) > 1)


def _open(*works: _Work) -> None:
    for work in works:
        work.gate.set()


def test_exchanges_of_one_phase_overlap_in_order():
    runner, log, works = Runner(background=True), [], [_Work() for _ in range(3)]
    pending = [_submit(runner, name, [w], log) for name, w in zip("abc", works, strict=True)]
    # The last one may complete only once all were started: they do overlap.
    _open(works[2], works[1], works[0])
    for one in pending:
        one.wait()
    assert [entry for entry in log if entry.endswith("0")] == ["a0", "b0", "c0"]
    runner.close()


def test_all_begin_before_the_first_completes():
    runner, log, works = Runner(background=True), [], [_Work(), _Work()]
    pending = [_submit(runner, name, [w], log) for name, w in zip("ab", works, strict=True)]
    deadline = threading.Event()
    while log != ["a0", "b0"]:
        assert not deadline.wait(0.001)
    _open(*works)
    for one in pending:
        one.wait()
    assert log == ["a0", "b0", "a done", "b done"]
    runner.close()


def test_an_exchange_of_two_phases_is_alone():
    for background in (True, False):
        runner, log = Runner(background=background), []
        works = [_Work() for _ in range(4)]
        _open(*works)
        first = _submit(runner, "a", works[:1], log)
        second = _submit(runner, "b", works[1:3], log)
        third = _submit(runner, "c", works[3:], log)
        for one in (first, second, third):
            one.wait()
        runner.close()
        if background:
            assert log.index("a done") < log.index("b0") < log.index("b done") < log.index("c0")
        else:
            assert log == ["a0", "b0", "c0", "a done", "b1", "b done", "c done"]


@pytest.mark.parametrize("background", [True, False])
def test_an_error_reaches_who_waits(background):
    runner, log, told = Runner(background=background), [], []
    bad, good = _Work("peer lost"), _Work()
    _open(bad, good)
    failed = runner.submit(_phases("a", [bad], log), FLAT, serial=False, then=told.append)
    fine = _submit(runner, "b", [good], log)
    with pytest.raises(RuntimeError, match="peer lost"):
        failed.wait()
    fine.wait()
    assert [str(error) for error in told] == ["peer lost"]
    assert "b done" in log
    runner.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_mistake_in_a_method_leaves_nobody_waiting():
    def mistaken() -> Phases:
        yield _Work()
        raise AssertionError

    def hopeless() -> Phases:
        raise KeyError("mistake")
        yield _Work()

    runner = Runner(background=True)
    first = runner.submit(mistaken(), FLAT, serial=False)
    second = runner.submit(hopeless(), FLAT, serial=False)
    # The thread may be gone before these are submitted: then it is told at once.
    behind = []
    for _ in range(3):
        with contextlib.suppress(RuntimeError):
            behind.append(runner.submit(mistaken(), FLAT, serial=False))
    for pending in (first, second, *behind):
        with pytest.raises(RuntimeError, match="thread of the exchange ended"):
            pending.wait()
    runner.close()
