"""The actor around one training process: it starts the work in a thread and answers questions."""

import faulthandler
import importlib
import logging
import os
import sys
import time
import traceback
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from pathlib import Path

import ray

from cluster.environment import replace, set_unless_set
from cluster.failure import Failure, failure_of
from cluster.host_memory import read_memory
from cluster.network import free_port, interface_variables
from cluster.rank import RankControl, RankJob, RankSpec
from cluster.reading import Outcome, Reading

logger = logging.getLogger("braid")


class TrainWorker:
    """One process that works as one rank, and after a fault as the same or another one.

    Every method returns at once, but for `prepare`, which imports, and `watch`, which waits: the
    actor needs threads.
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
        self._spec, self._control, self._failure = spec, RankControl(), None
        self._work = self._thread.submit(load(work), spec, self._control)
        self._work.add_done_callback(self._note_failure)

    def watch(self) -> None:
        """Return when the work that was begun last is over. That the process ended shows in the
        call's own failure."""
        assert self._work is not None
        wait_for([self._work])

    def read(self) -> Reading:
        """What this process is doing, and the reports not handed over yet."""
        assert self._spec is not None
        moment = self._control.status.read()
        return Reading(
            rank=self._spec.environment.rank,
            phase=moment.phase,
            step=moment.step,
            elapsed_s=time.monotonic() - moment.since_s,
            memory=read_memory(),
            reports=self._control.take_reports(),
            outcome=self._outcome(),
            failure=self._failure,
        )

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

    def _note_failure(self, work: "Future[Outcome]") -> None:
        """Turn any exception at all into a record: the process must live on to hand it over.

        Called in the training thread when the work is done.
        """
        error = work.exception()
        if error is None or self._spec is None:
            return
        traceback.print_exception(error, file=sys.stderr)
        self._failure = failure_of(
            error,
            moment=self._control.status.read(),
            rank=self._spec.environment.rank,
            host=self._spec.environment.host,
            now_s=time.time(),
        )


def load(work: str) -> RankJob:
    """Import `module:function`. By name, since what imports torch takes seconds to import: workers
    do so side by side, and the driver never."""
    module, function = work.split(":")
    job: RankJob = vars(importlib.import_module(module))[function]
    return job


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
