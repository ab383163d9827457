"""The state of a process, from the operating system."""

import os
from contextlib import suppress

import psutil

from cluster.watchdog.evidence import ProcessState
from cluster.watchdog.starved import ThreadTimes

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


def process_state(pid: int) -> ProcessState:
    """What the process `pid` of this host does."""
    try:
        return _STATES.get(psutil.Process(pid).status(), "unknown")
    except psutil.NoSuchProcess:
        return "gone"
    except psutil.AccessDenied:
        return "unknown"


def thread_times(pid: int) -> dict[int, ThreadTimes]:
    """Of all threads of the process `pid`, by their numbers; none where the system does not say."""
    found = {}
    with suppress(OSError):
        for number in os.listdir(f"/proc/{pid}/task"):
            with suppress(OSError, ValueError):  # It may just have ended.
                found[int(number)] = _thread(f"/proc/{pid}/task/{number}")
    return found


def _thread(folder: str) -> ThreadTimes:
    ran_ns, waited_ns, _ = _contents(f"{folder}/schedstat").split()
    # The name, which comes before the state, may hold anything.
    state = _contents(f"{folder}/stat").rpartition(b")")[2].split(maxsplit=1)[0]
    return ThreadTimes(state == b"R", int(ran_ns) / 1e9, int(waited_ns) / 1e9)


def _contents(path: str) -> bytes:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(file, 4096)
    finally:
        os.close(file)
