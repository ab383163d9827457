"""Open the board on which a training process tells what it does."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from comms.config import RankEnvironment
from comms.telemetry.board import Board
from comms.telemetry.recorder import Recorder
from trainer.status import Status

logger = logging.getLogger("braid")


@contextmanager
def recording(
    path: Path | None, environment: RankEnvironment, status: Status
) -> Iterator[Recorder | None]:
    """A recorder on a new board at `path`, which also hears of the phases of `status`; None without
    a path, or where there is no room for the board: training matters more."""
    recorder = None if path is None else _open(path, environment)
    if recorder is None:
        yield None
        return
    recorder.meet_anew(environment.generation)
    status.listener = recorder.enter
    try:
        yield recorder
    finally:
        status.listener = None
        recorder.close()


def _open(path: Path, environment: RankEnvironment) -> Recorder | None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return Recorder(
            Board.create(path, rank=environment.rank, pid=os.getpid()),
            on_device=environment.device_type == "cuda",
        )
    except OSError as error:
        logger.warning("nobody can look into this process from outside: %s: %s", path, error)
        return None
