"""The actor around one process that samples: it starts the work in a thread and passes messages."""

import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from cluster.environment import replace, set_unless_set
from cluster.failure import Failure, failure_of
from cluster.network import interface_variables
from cluster.post import Post
from cluster.worker import load, redirect_output
from trainer.config import JobConfig
from trainer.rl.messages import FromRollout, ToRollout
from trainer.status import Moment

logger = logging.getLogger("braid")


@dataclass(frozen=True, kw_only=True)
class RolloutSpec:
    """Everything one worker that samples is told."""

    name: str
    """By which it is known in channels and messages."""

    seat: int
    """Its place among the workers that sample; a replacement has that of the one it replaces."""

    host: str
    job: JobConfig
    device: str
    threads: int
    devices: tuple[str, ...]
    """GPUs that it shares with a rank; empty where it has its own, or none."""


class RolloutControl:
    """Shared by the sampling thread and the threads that answer the driver."""

    def __init__(self) -> None:
        self.post: Post[ToRollout, FromRollout] = Post()
        self._stop = threading.Event()

    def request_stop(self) -> None:
        """Ask the sampling thread to end."""
        self._stop.set()
        self.post.hang_up(0)

    def should_stop(self) -> bool:
        """Whether it was asked."""
        return self._stop.is_set()


RolloutJob: TypeAlias = Callable[[RolloutSpec, RolloutControl], None]
"""The work of one such process, until it is asked to stop."""


class RolloutWorker:
    """One process that samples. It does one piece of work and then ends with it.

    Every method returns at once, but for `begin`, which imports, and `watch` and `collect`, which
    wait: the actor needs threads.
    """

    def __init__(self, address: str, log: str) -> None:
        self._control = RolloutControl()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sampling")
        self._spec: RolloutSpec | None = None
        self._work: Future[None] | None = None
        redirect_output(Path(log))
        set_unless_set(interface_variables(address))

    def process(self) -> int:
        """Number of this process on its host."""
        return os.getpid()

    def begin(self, work: str, spec: RolloutSpec) -> None:
        """Import the work, `module:function`, and start it in its thread. Called once."""
        logger.info("%s on %s, process %d", spec.name, spec.host, os.getpid())
        if spec.devices:
            replace("CUDA_VISIBLE_DEVICES", ",".join(spec.devices))
        job: RolloutJob = load(work)
        self._spec = spec
        self._work = self._thread.submit(job, spec, self._control)

    def watch(self) -> Failure | None:
        """Return when the work is over: why it failed, or None where it was asked to end."""
        assert self._work is not None
        assert self._spec is not None
        wait_for([self._work])
        error = self._work.exception()
        if error is None:
            return None
        traceback.print_exception(error, file=sys.stderr)
        return failure_of(
            error,
            moment=Moment(phase="sampling", step=0, since_s=time.time()),
            rank=self._spec.seat,
            host=self._spec.host,
            now_s=time.time(),
        )

    def deliver(self, work: int, first: int, messages: Sequence[ToRollout]) -> None:
        """Messages for the work; `first` is the number of the first."""
        self._control.post.deliver(work, first, messages)

    def collect(self, work: int, first: int, timeout_s: float) -> tuple[FromRollout, ...]:
        """Messages from number `first` on. Waits for one, up to `timeout_s`."""
        return self._control.post.collect(work, first, timeout_s)

    def request_stop(self) -> None:
        """Ask the work to end."""
        self._control.request_stop()
