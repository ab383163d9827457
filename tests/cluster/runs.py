"""Whole runs on the cluster of the tests, and faults at moments of them."""

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from cluster.config import ClusterConfig
from cluster.launch import launch
from cluster.recovery.config import RecoveryConfig
from cluster.watchdog.config import WatchdogConfig
from tests.left import events
from trainer.config import JobConfig
from trainer.errors import ExitCode

HERE = ClusterConfig(address="auto")


def run(
    job: JobConfig,
    view: Any,
    cluster: ClusterConfig = HERE,
    *,
    recovery: RecoveryConfig | None = None,
    origins: dict[str, str] | None = None,
    **works: str,
) -> ExitCode:
    """As `braid run` does it. `works` may name other work than training."""
    return launch(
        job,
        cluster,
        watchdog=WatchdogConfig(),
        recovery=recovery or RecoveryConfig(),
        origins=origins or {},
        recipe_text="run: {}\n",
        view=view,
        **works,
    )


def when(ready: Callable[[], bool], act: Callable[[], None]) -> threading.Thread:
    """Do something as soon as something holds."""

    def watch() -> None:
        while not ready():
            time.sleep(0.005)
        act()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def newest_process(job: JobConfig, who: int | str) -> int:
    """The latest of a rank, or of a worker that samples."""
    if isinstance(who, int):
        return int(events(job, "ranks_started")[-1]["ranks"][who]["process"])
    started = [e for e in events(job, "rollout_started") if e["worker"].startswith(who)]
    return int(started[-1]["process"])


def kill(job: JobConfig, who: int | str) -> Callable[[], None]:
    """To be done later: end a rank or a worker that samples, whichever process it then is."""
    return lambda: os.kill(newest_process(job, who), signal.SIGKILL)
