"""Answers that are Python programs: each run in a fresh confined process, judged outside of it.

Guarantees, each asserted in tests/cluster/rewards/test_programs.py:
- a program sees its input and the standard library, never the output that is expected of it, and
  nothing it does to its own process changes how it is judged;
- one that raises, hangs, exits, floods its output or takes all memory is reported as such, and the
  others' outcomes are as ever.
"""

import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil

from cluster.rewards.child import Child, pump
from cluster.rewards.protocol import encode
from cluster.rewards.worker import fault_of_exit, import_path
from trainer.errors import ResourceError
from trainer.rl.rewards.config import MIB
from trainer.rl.rewards.outcome import Fault, FaultKind

FENCED = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class ProgramLimits:
    """Bounds on each program."""

    time_limit_s: float = 5.0
    memory_bytes: int = 512 * MIB
    max_output_bytes: int = MIB
    at_once: int = 2
    """Programs that run side by side."""


@dataclass(frozen=True)
class Program:
    """Source, and what it reads from stdin."""

    source: str
    stdin: str = ""


@dataclass(frozen=True)
class ProgramOutcome:
    """What it printed, and what went wrong, if anything did."""

    stdout: str
    fault: Fault | None = None


class _Running:
    """A program and its deadline."""

    def __init__(self, place: int, program: Program, limits: ProgramLimits, now_s: float) -> None:
        self.place = place
        self.deadline_s = now_s + limits.time_limit_s
        self.child = Child(
            [sys.executable, "-P", "-S", "-B", "-m", "cluster.rewards.run_program"],
            import_path(()),
            max_out_bytes=limits.max_output_bytes,
        )
        # Lone surrogates cannot be encoded; a program with one is wrong anyway.
        source = program.source.encode(errors="replace")
        settings = {
            "source_bytes": len(source),
            "memory_bytes": limits.memory_bytes,
            "cpu_s": ceil(limits.time_limit_s) + 1,
            "parent_pid": os.getpid(),
        }
        stdin = program.stdin.encode(errors="replace")
        self.child.send(encode(settings) + source + stdin, last=True)


def require_confinement(limits: ProgramLimits) -> None:
    """Raise ResourceError where this system cannot confine a program. Call it once at the start."""
    # An exit code tells nothing of a generated program, which may return any; this one is empty.
    fault = run_programs([Program("")], limits)[0].fault
    if fault is not None:
        raise ResourceError(
            f"this system cannot run generated programs in confinement ({fault.reason}); run on "
            "Linux on x86_64 or aarch64, with seccomp filters and more memory than the limit of "
            f"{limits.memory_bytes} bytes"
        )


def run_programs(
    programs: Sequence[Program],
    limits: ProgramLimits,
    clock: Callable[[], float] = time.monotonic,
) -> list[ProgramOutcome]:
    """The outcome of each program, in their order. Where it cannot be confined it is not run."""
    outcomes: dict[int, ProgramOutcome] = {}
    running: list[_Running] = []
    try:
        while len(outcomes) < len(programs):
            started = len(outcomes) + len(running)
            if started < len(programs) and len(running) < limits.at_once:
                running.append(_Running(started, programs[started], limits, clock()))
                continue
            soonest_s = min(one.deadline_s for one in running)
            pump([one.child for one in running], soonest_s - clock())
            for one in [one for one in running if _is_over(one, clock())]:
                outcomes[one.place] = _outcome(one, limits)
                running.remove(one)
                one.child.kill()
    finally:
        for one in running:
            one.child.kill()
    return [outcomes[place] for place in range(len(programs))]


def passed_share(
    source: str, cases: Sequence[tuple[str, str]], limits: ProgramLimits
) -> tuple[float, Fault | None]:
    """Share of (stdin, expected stdout) that a program gets right, and its first fault.

    Spaces at the ends of lines and of the output do not count.
    """
    if not cases:
        raise ValueError("no cases to check the program with; give at least one (stdin, stdout)")
    outcomes = run_programs([Program(source, stdin) for stdin, _ in cases], limits)
    right = [
        outcome.fault is None and _lines(outcome.stdout) == _lines(expected)
        for outcome, (_, expected) in zip(outcomes, cases, strict=True)
    ]
    fault = next((outcome.fault for outcome in outcomes if outcome.fault is not None), None)
    return sum(right) / len(right), fault


def extract_program(answer: str) -> str:
    """The last fenced block of Python in a text, or the whole text where there is none."""
    blocks = FENCED.findall(answer)
    return blocks[-1] if blocks else answer


def _is_over(one: _Running, now_s: float) -> bool:
    return one.child.ended or one.child.overflowed or now_s >= one.deadline_s


def _outcome(one: _Running, limits: ProgramLimits) -> ProgramOutcome:
    child = one.child
    stdout = bytes(child.out[: limits.max_output_bytes]).decode(errors="replace")
    if child.overflowed:
        reason = f"it printed more than {limits.max_output_bytes} bytes"
        return ProgramOutcome(stdout, Fault(FaultKind.GARBLED, reason))
    if not child.ended:
        reason = f"it took longer than {limits.time_limit_s:g} s and was ended"
        return ProgramOutcome(stdout, Fault(FaultKind.TIMEOUT, reason))
    if child.return_code != 0:
        return ProgramOutcome(stdout, fault_of_exit(child.return_code or 0, child.error_text))
    return ProgramOutcome(stdout)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]
