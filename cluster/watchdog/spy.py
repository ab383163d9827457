"""Take the stacks of a process from outside, while it is stuck.

`py-spy` reads the memory of the process and needs nothing of it, so it works whatever holds the
interpreter; it takes the right to trace: root, the same user where the kernel allows that
(`kernel.yama.ptrace_scope` 0), or `CAP_SYS_PTRACE` in a container. Where it is missing, a process
that called `answer_signals` writes its own stacks, which a stopped process cannot do.
"""

import faulthandler
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import psutil

LIMIT_S = 5.0
_POLL_S = 0.05
_SIGNAL = signal.SIGUSR1


@dataclass(frozen=True)
class StackDump:
    """Stacks of all threads of one process, as text for `stacks.py`."""

    text: str
    """Empty where they could not be had."""

    note: str
    """How they were taken, and what stood in the way."""


def answer_signals(path: Path) -> TextIO:
    """Write the stacks of this process to `path` whenever it gets SIGUSR1. Called once, in the
    main thread of the process; keep the file open for as long as it should answer."""
    file = path.open("w")
    faulthandler.register(_SIGNAL, file=file, all_threads=True)
    return file


def dump_stacks(
    pid: int, *, native: bool = True, limit_s: float = LIMIT_S, answers: Path | None = None
) -> StackDump:
    """The stacks of `pid`. Takes at most about `limit_s` per attempt; raises nothing.

    `answers` is the file that the process gave to `answer_signals`.
    """
    spy = find_spy()
    if spy is None:
        return _ask(pid, answers, limit_s, "py-spy is not installed (pip install py-spy)")
    # A stopped process cannot be paused for a consistent look, and native frames need one.
    frozen = _status(pid) == psutil.STATUS_STOPPED
    attempts = [["--nonblocking"]] if frozen else [["--native"]] * native + [[], ["--nonblocking"]]
    trouble = ""
    for options in attempts:
        text, trouble = _run([spy, "dump", *options, "--pid", str(pid)], limit_s)
        if text:
            return StackDump(text, " ".join(["py-spy", *options]))
    return _ask(pid, answers, limit_s, trouble)


def find_spy() -> str | None:
    """The py-spy of this installation, else that on the path; None where there is none."""
    beside = Path(sys.executable).parent / "py-spy"
    return str(beside) if beside.exists() else shutil.which("py-spy")


def _run(command: list[str], limit_s: float) -> tuple[str, str]:
    """Output and, where there is none of use, the reason."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        return "", f"py-spy gave no answer within {limit_s:g} s"
    except OSError as error:
        return "", f"py-spy cannot be run: {error}"
    if done.returncode == 0 and "Thread" in done.stdout:
        return done.stdout, ""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    reason = "; ".join(lines[:4]) or f"exit code {done.returncode}"
    if "ermission" in reason:
        reason += " (it needs CAP_SYS_PTRACE, or kernel.yama.ptrace_scope=0)"
    return "", f"py-spy: {reason}"


def _ask(pid: int, answers: Path | None, limit_s: float, trouble: str) -> StackDump:
    """Have the process write its stacks itself."""
    if answers is None or not answers.exists():
        return StackDump("", trouble)
    if not _catches(pid):
        return StackDump("", f"{trouble}; process {pid} does not answer signals, or is gone")
    before = answers.stat().st_size
    psutil.Process(pid).send_signal(_SIGNAL)
    end_s = time.monotonic() + limit_s
    size = before
    while time.monotonic() < end_s:
        time.sleep(_POLL_S)
        grown = answers.stat().st_size
        if grown > before and grown == size:
            with answers.open() as file:
                file.seek(before)
                return StackDump(file.read(), f"faulthandler, since {trouble}")
        size = grown
    return StackDump("", f"{trouble}; the process did not answer a signal within {limit_s:g} s")


def _catches(pid: int) -> bool:
    """Whether the process handles the signal, which would else end it."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    masks = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")]
    return bool(masks) and bool(int(masks[0], 16) >> (_SIGNAL - 1) & 1)


def _status(pid: int) -> str:
    try:
        return psutil.Process(pid).status()
    except psutil.Error:
        return psutil.STATUS_DEAD
