"""Carries exchanges on beside compute, in an order that is the same on all ranks.

Guarantees, each asserted in tests/comms/compression/test_runner.py:
- collectives start in the order in which exchanges were submitted, whatever the timing;
- exchanges of one phase overlap; one with more phases is alone;
- an error reaches whoever waits for that exchange, a mistake in a method too.
"""

import queue
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from comms.compression.method import Phases

_LOOK_AGAIN_S = 0.0005
"""How long a collective under way is left alone before a new exchange may begin."""


class Pending(Protocol):
    """An exchange under way."""

    def wait(self) -> None:
        """Return once the sum is in place. Raises RuntimeError where a rank was lost."""


class Job:
    """One exchange. Its steps run on `stream` where the tensor is on a CUDA device."""

    def __init__(
        self,
        phases: Phases,
        flat: Tensor,
        *,
        serial: bool,
        stream: torch.cuda.Stream | None,
        then: Callable[[BaseException | None], None] | None = None,
    ) -> None:
        self.serial = serial
        self._phases = phases
        self._stream = stream
        self._then = then
        self._work: dist.Work | None = None
        self._future: Future[None] = Future()
        self._done_event: torch.cuda.Event | None = None
        if stream is not None:
            stream.wait_stream(torch.cuda.current_stream(flat.device))
            flat.record_stream(stream)

    @property
    def done(self) -> bool:
        """Whether the sum is in place, or never will be."""
        return self._future.done()

    def begin(self) -> None:
        """Start the first collective."""
        with self._on_stream():
            self._advance()

    def under_way(self) -> bool:
        """Whether a collective has been started and has not completed."""
        return self._work is not None and not self._work.is_completed()

    def finish(self) -> None:
        """Wait for all that is left."""
        with self._on_stream():
            while self._work is not None:
                work, self._work = self._work, None
                try:
                    work.wait()
                except RuntimeError as error:
                    self._end(error)
                    return
                self._advance()

    def fail(self, reason: str) -> None:
        """Give up, unless it is over already."""
        if not self.done:
            self._end(RuntimeError(reason))

    def wait(self) -> None:
        """Return once another thread has finished this. Raises what it met with."""
        self._future.result()
        if self._done_event is not None:
            torch.cuda.current_stream().wait_event(self._done_event)

    def _advance(self) -> None:
        try:
            self._work = next(self._phases)
        except StopIteration:
            self._end(None)
        except (RuntimeError, ValueError) as error:
            self._end(error)

    def _end(self, error: BaseException | None) -> None:
        if self._stream is not None:
            self._done_event = self._stream.record_event()
        if self._then is not None:
            self._then(error)
        if error is None:
            self._future.set_result(None)
        else:
            self._future.set_exception(error)

    def _on_stream(self) -> AbstractContextManager[object]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)


class _OnCaller:
    """A job that goes on when its caller waits."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def wait(self) -> None:
        """Finish the job here."""
        self._job.finish()
        self._job.wait()


class Runner:
    """Runs exchanges on a thread of its own, or, without `background`, on the calling one: the
    first collective when submitted, the rest when waited for."""

    def __init__(self, *, background: bool) -> None:
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._background = background
        self._stream: torch.cuda.Stream | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._ended = False

    def submit(
        self,
        phases: Phases,
        flat: Tensor,
        *,
        serial: bool,
        then: Callable[[BaseException | None], None] | None = None,
    ) -> Pending:
        """Begin an exchange of `flat`; `then` is called where it ends, with its error or None."""
        if flat.is_cuda and self._stream is None:
            self._stream = torch.cuda.Stream(flat.device)
        job = Job(phases, flat, serial=serial, stream=self._stream, then=then)
        if not self._background:
            job.begin()
            return _OnCaller(job)
        with self._lock:
            if self._thread is None:
                self._queue, self._ended = queue.SimpleQueue(), False
                self._thread = threading.Thread(target=self._run, name="exchange", daemon=True)
                self._thread.start()
            if self._ended:
                raise RuntimeError("The thread of the exchange has ended: make a new exchange.")
            self._queue.put(job)
        return job

    def close(self) -> None:
        """End the thread after what was submitted. Calling it again does nothing."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        waiting: deque[Job] = deque()
        try:
            while (job := self._next(waiting)) is not None:
                if job.serial:
                    _finish_all(waiting)
                waiting.append(job)
                job.begin()
                if job.serial:
                    job.finish()
                if job.done:
                    waiting.pop()
            _finish_all(waiting)
        finally:
            # Only a mistake in a method gets here with jobs left: nobody must wait for ever.
            with self._lock:
                self._ended = True
                while not self._queue.empty():
                    if (job := self._queue.get()) is not None:
                        waiting.append(job)
            for job in waiting:
                job.fail("The thread of the exchange ended: its traceback was printed.")

    def _next(self, waiting: deque[Job]) -> Job | None:
        """What is submitted next; until then, jobs whose collective has completed are finished."""
        while waiting:
            try:
                return self._queue.get(timeout=_LOOK_AGAIN_S if waiting[0].under_way() else 0)
            except queue.Empty:
                if not waiting[0].under_way():
                    waiting[0].finish()
                    waiting.popleft()
        return self._queue.get()


def _finish_all(waiting: deque[Job]) -> None:
    while waiting:
        waiting[0].finish()
        waiting.popleft()
