"""The actor around one training process: it starts the work in a thread and answers questions."""

import faulthandler
import importlib
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from pathlib import Path
from typing import Any

import ray

from cluster.environment import replace, set_unless_set
from cluster.failure import Failure, failure_of
from cluster.host_memory import read_memory
from cluster.network import free_port, interface_variables
from cluster.rank import RankControl, RankSpec
from cluster.reading import Outcome, Reading
from trainer.rl.messages import FromTrainer, ToTrainer

logger = logging.getLogger("braid")

Job = Callable[[RankSpec, RankControl], Outcome]
"""What a rank does."""


class TrainWorker:
    """One process that works as one rank, and after a fault as the same or another one.

    Every method returns at once, but for `prepare`, which imports, and `watch` and `collect`, which
    wait: the actor needs threads.
    """

    def __init__(self, address: str, log: str) -> None:
        self._address = address
        self._log = log
        self._control = RankControl()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="training")
        self._spec: RankSpec | None = None
        self._work: Future[Outcome] | None = None
        self._failure: Failure | None = None
        redirect_output(Path(log))
        set_unless_set(interface_variables(address))

    def process(self) -> int:
        """Number of this process on its host."""
        return os.getpid()

    def devices(self) -> list[str]:
        """GPUs that Ray gave to this process."""
        return [str(device) for device in ray.get_gpu_ids()]

    def prepare(self, work: str, devices: list[str]) -> int:
        """Import the work, `module:function`; number of this process on its host.

        `devices` are the GPUs of all workers of this host: each sees them all, since direct copies
        between two GPUs need both in sight.
        """
        if devices:
            replace("CUDA_VISIBLE_DEVICES", ",".join(devices))
        load(work)
        return os.getpid()

    def port(self) -> int:
        """A port of this host that is free now."""
        return free_port(self._address)

    def begin(self, work: str, spec: RankSpec, log: str) -> None:
        """Start the work in the training thread, as the rank that `spec` says. Called once for each
        generation, when the work of the one before has ended."""
        if log != self._log:
            self._log = log
            redirect_output(Path(log))
        environment = spec.environment
        logger.info(
            "rank %d (local rank %d) of %d on %s, process %d, generation %d",
            environment.rank,
            environment.local_rank,
            environment.world_size,
            environment.host,
            os.getpid(),
            environment.generation,
        )
        self._control = RankControl(environment.generation)
        self._spec, self._failure = spec, None
        self._work = self._thread.submit(self._run, load(work), spec, self._control)

    def watch(self) -> None:
        """Return when the work that was begun last is over. That the process ended shows in the
        call's own failure."""
        assert self._work is not None
        wait_for([self._work])

    def read(self) -> Reading:
        """What this process is doing, and the reports not handed over yet."""
        assert self._spec is not None
        moment = self._control.status.read()
        # Before the reports: when it is over, none comes any more.
        outcome, failure = self._outcome(), self._failure
        return Reading(
            rank=self._spec.environment.rank,
            phase=moment.phase,
            step=moment.step,
            elapsed_s=time.monotonic() - moment.since_s,
            memory=read_memory(),
            reports=self._control.take_reports(),
            outcome=outcome,
            failure=failure,
        )

    def deliver(self, generation: int, first: int, messages: Sequence[ToTrainer]) -> None:
        """Messages for the work of that generation; `first` is the number of the first."""
        self._control.post.deliver(generation, first, messages)

    def collect(self, generation: int, first: int, timeout_s: float) -> tuple[FromTrainer, ...]:
        """Messages of the work of that generation from number `first` on. Waits for one, up to
        `timeout_s`."""
        return self._control.post.collect(generation, first, timeout_s)

    def hang_up(self, generation: int) -> None:
        """The work of that generation will get no messages any more."""
        self._control.post.hang_up(generation)

    def request_stop(self) -> None:
        """Ask the training thread to save and end."""
        self._control.request_stop()

    def request_regroup(self) -> None:
        """Ask the training thread to end at a step that is in memory, for others to go on."""
        self._control.request_regroup()

    def _outcome(self) -> Outcome | None:
        work = self._work
        if work is None or not work.done() or work.exception() is not None:
            return None
        return work.result()

    def _run(self, job: Job, spec: RankSpec, control: RankControl) -> Outcome:
        """The work, in the training thread. Any exception at all is turned into a record before the
        work counts as over: the process must live on to hand it over, with its own generation."""
        try:
            return job(spec, control)
        except BaseException as error:
            traceback.print_exception(error, file=sys.stderr)
            self._failure = failure_of(
                error,
                moment=control.status.read(),
                rank=spec.environment.rank,
                host=spec.environment.host,
                now_s=time.time(),
            )
            raise


def load(work: str) -> Any:
    """Import `module:function`. By name, since what imports torch takes seconds to import: workers
    do so side by side, and the driver never."""
    module, function = work.split(":")
    return vars(importlib.import_module(module))[function]


def redirect_output(log: Path) -> None:
    """Send this process's output, that of C++ libraries included, to its own log, line by line."""
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    faulthandler.enable(sys.stderr)
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        force=True,
    )
