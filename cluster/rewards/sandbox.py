"""Confines the process that calls it, for good. Linux; works without root.

What holds afterwards, and is tried out in tests/cluster/rewards/test_sandbox.py:
- no network: the kernel refuses to make a socket, and where namespaces may be made there is no
  network to reach either;
- no processes, programs or signals to others: whoever kills this process has ended it all;
- no file is written, made, renamed or deleted; files may be read as far as the user may;
- memory and, if wanted, processor time are bounded, and it is the first to go when the host's
  memory runs out;
- it dies with the thread that started it.

What does not: it may read whatever its user may read. It has no way to send it anywhere but its own
answer.
"""

import ctypes
import os
import resource
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from cluster.rewards.filter import filter_program

PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38
SECCOMP_MODE_FILTER = 2
CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWNET = (
    0x04000000,
    0x08000000,
    0x10000000,
    0x40000000,
)
MAX_OPEN_FILES = 256


@dataclass(frozen=True)
class Limits:
    """Bounds on one confined process."""

    memory_bytes: int
    """Address space."""

    cpu_s: int | None = None
    """Processor time over its whole life."""


@dataclass(frozen=True)
class Confinement:
    """What this system allowed."""

    filtered: bool
    """Calls to the kernel are filtered. All promises rest on this one."""

    own_namespaces: bool
    """Without network, and without the capabilities of root; on top of the filter."""


class _FilterProgram(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def confine(limits: Limits, *, parent_pid: int) -> Confinement:
    """Confine this process, which must have one thread. Call it before any foreign code runs."""
    if not sys.platform.startswith("linux"):
        _limit(limits, processes=1)
        return Confinement(filtered=False, own_namespaces=False)
    libc = ctypes.CDLL(None, use_errno=True)
    _be_first_to_go()
    alone = libc.unshare(CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS) == 0
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        sys.exit(1)  # the parent died before this process could ask to die with it
    program = filter_program(os.uname().machine, os.getpid())
    # Where the filter refuses processes, a limit on them would only stop threads.
    _limit(limits, processes=1 if program is None else None)
    filtered = program is not None and _install(libc, program)
    return Confinement(filtered=filtered, own_namespaces=alone)


def _limit(limits: Limits, *, processes: int | None) -> None:
    bounds = {
        resource.RLIMIT_AS: limits.memory_bytes,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: MAX_OPEN_FILES,
    }
    if limits.cpu_s is not None:
        bounds[resource.RLIMIT_CPU] = limits.cpu_s
    if processes is not None:
        bounds[resource.RLIMIT_NPROC] = processes
    for kind, bound in bounds.items():
        highest = resource.getrlimit(kind)[1]
        if highest != resource.RLIM_INFINITY:
            bound = min(bound, highest)
        resource.setrlimit(kind, (bound, bound))


def _be_first_to_go() -> None:
    try:
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    except OSError:
        return  # without /proc the kernel chooses by size


def _install(libc: ctypes.CDLL, program: bytes) -> bool:
    """Whether the kernel took the filter. It holds for threads and cannot be taken off."""
    given = _FilterProgram(len(program) // 8, program)
    # Without it only root may filter; with it no program can gain rights either.
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    return libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(given), 0, 0) == 0
