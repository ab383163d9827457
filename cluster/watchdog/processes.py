"""The state of a process, from the operating system."""

import psutil

from cluster.watchdog.evidence import ProcessState

CLOCK_STEP_S = 1.0
"""Start times of one process differ by rounding alone."""

_STATES: dict[str, ProcessState] = {
    psutil.STATUS_RUNNING: "running",
    psutil.STATUS_SLEEPING: "sleeping",
    psutil.STATUS_IDLE: "sleeping",
    psutil.STATUS_STOPPED: "stopped",
    psutil.STATUS_DISK_SLEEP: "disk-wait",
    psutil.STATUS_ZOMBIE: "zombie",
    psutil.STATUS_DEAD: "gone",
    # A debugger, or py-spy, holds it for a moment: that is no fault of its own.
    psutil.STATUS_TRACING_STOP: "sleeping",
}


def process_state(pid: int, *, created_s: float | None = None) -> ProcessState:
    """What the process `pid` of this host does.

    With `created_s` (`psutil.Process.create_time`) another process that got the same number counts
    as the first one gone.
    """
    try:
        process = psutil.Process(pid)
        other = created_s is not None and abs(process.create_time() - created_s) > CLOCK_STEP_S
        return "gone" if other else _STATES.get(process.status(), "unknown")
    except psutil.NoSuchProcess:
        return "gone"
    except psutil.AccessDenied:
        return "unknown"
