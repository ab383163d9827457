"""How much this rank sends and how long it waits for it, per axis and operation."""

import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch.distributed as dist

from comms.telemetry.recorder import UNRECORDED, Link, Recorder


class Started(NamedTuple):
    """A collective under way."""

    work: dist.Work
    token: int


class Ledger:
    """Counts of one rank since the last `take`. Used by the training thread alone, but for
    `recorder`, where each collective is recorded too if there is one."""

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        *,
        recorder: Recorder | None = None,
    ) -> None:
        self.clock = clock
        self._sent: defaultdict[str, int] = defaultdict(int)
        self._waited_s = 0.0
        self.recorder = recorder

    def sent(self, axis: str, operation: str, sent_bytes: int) -> None:
        """Count one collective's bytes."""
        self._sent[f"{axis}/{operation}"] += sent_bytes

    def begin(
        self,
        axis: str,
        operation: str,
        sent_bytes: int,
        group: dist.ProcessGroup,
        *,
        link: Link | None = None,
        started: bool = True,
    ) -> int:
        """Count a collective over `group` that begins now, and record it; a token to hand to
        `waiting`. With `link`, it goes from one rank of the group to another; without `started`,
        another thread starts it."""
        self.sent(axis, operation, sent_bytes)
        if self.recorder is None:
            return UNRECORDED
        return self.recorder.enqueue(axis, operation, sent_bytes, group, link=link, started=started)

    def expect(self, axis: str, operation: str, group: dist.ProcessGroup, link: Link) -> int:
        """Record that this rank begins to receive what another sends, and counts; a token."""
        if self.recorder is None:
            return UNRECORDED
        return self.recorder.enqueue(axis, operation, 0, group, link=link)

    def waiting(self, *tokens: int) -> "_Waiting":
        """Count the time inside as communication that compute did not hide. `tokens` are of the
        collectives that are waited for, which then are over unless an error is raised."""
        return _Waiting(self, tokens)

    def wait(self, started: Started) -> None:
        """Wait for what `begin` counted, and count the time."""
        with self.waiting(started.token):
            started.work.wait()

    def recorded(
        self,
        axis: str,
        operation: str,
        sent_bytes: int,
        group: dist.ProcessGroup,
        *,
        beside: bool = False,
    ) -> AbstractContextManager[None]:
        """Record a collective that is done inside, without counting it. Any thread may call it;
        one that works beside the step says so."""
        if self.recorder is None:
            return nullcontext()
        return self.recorder.collective(axis, operation, sent_bytes, group, beside=beside)

    def ended(self, token: int) -> None:
        """Record that a collective is over which nobody had to wait for."""
        if self.recorder is not None:
            self.recorder.end(token)

    def collective(
        self, axis: str, operation: str, sent_bytes: int, group: dist.ProcessGroup
    ) -> "_Waiting":
        """Count a collective over `group` that is done inside, its time included."""
        return _Waiting(self, (self.begin(axis, operation, sent_bytes, group),))

    def add_wait(self, seconds: float) -> None:
        """Count seconds waited."""
        self._waited_s += seconds

    def begin_step(self, step: int, phase: str) -> None:
        """Record that a step begins, and with which phase."""
        if self.recorder is not None:
            self.recorder.begin_step(step, phase)

    def begin_work(self, work: float) -> None:
        """Record that the step's batch is there, and how much this rank has to do."""
        if self.recorder is not None:
            self.recorder.begin_work(work)

    def enter(self, phase: str) -> None:
        """Record which phase of the step, or of the run, begins."""
        if self.recorder is not None:
            self.recorder.enter(phase)

    def begin_round(self, number: int) -> None:
        """Record which round of the step begins, counted from 0."""
        if self.recorder is not None:
            self.recorder.begin_round(number)

    def end_step(self) -> None:
        """Record that the step is over, before its counts are taken."""
        if self.recorder is not None:
            self.recorder.end_step(self._waited_s)

    @property
    def waited_s(self) -> float:
        """Seconds waited since the last `take`."""
        return self._waited_s

    def take(self) -> tuple[dict[str, int], float]:
        """Bytes per axis and operation, and seconds waited; both start again at zero."""
        counts = dict(self._sent), self._waited_s
        self._sent.clear()
        self._waited_s = 0.0
        return counts


class _Waiting:
    """One wait. A class, as a generator takes three times as long to enter and leave."""

    __slots__ = ("_begin_s", "_ledger", "_tokens")

    def __init__(self, ledger: Ledger, tokens: tuple[int, ...]) -> None:
        self._ledger = ledger
        self._tokens = tokens
        self._begin_s = 0.0

    def __enter__(self) -> None:
        if self._ledger.recorder is not None:
            self._ledger.recorder.block(*self._tokens)
        self._begin_s = self._ledger.clock()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        ledger = self._ledger
        ledger.add_wait(ledger.clock() - self._begin_s)
        if kind is None and ledger.recorder is not None:
            ledger.recorder.end(*self._tokens)
