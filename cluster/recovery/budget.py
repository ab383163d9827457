"""Whether a fault is worth another start, and after which pause. Pure decisions.

Guarantees, each asserted in tests/cluster/recovery/test_budget.py:
- a fault that a restart cannot mend (recipe, data, resources, numbers) is not tried again;
- more recoveries than allowed within the window end the run, and the story names each fault;
- the same exception of ranks' own at the same step, twice in a row, ends the run, whichever rank
  was first to raise it: it is in the program and would come again;
- five recoveries that came to no step end it too;
- a recovery that came to a step starts the pauses anew.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.failure import Failure
from trainer.errors import ExitCode

LONGEST_PAUSE_S = 60.0

MOST_IN_VAIN = 5
"""Recoveries in a row that came to no step at all."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault and how far the run had come."""

    failure: Failure
    at_s: float
    """By the driver's clock."""

    stepped: bool
    """Whether a step was done since the recovery before."""


@dataclass(frozen=True, kw_only=True)
class Allowance:
    """What the recipe allows."""

    max_restarts: int
    window_s: float
    backoff_s: float


def worth_a_restart(failure: Failure) -> bool:
    """Whether starting again may help."""
    return failure.exit_code == ExitCode.INFRASTRUCTURE


def refusal(faults: Sequence[Fault], allowance: Allowance) -> str:
    """Why the run is not started again after the last of `faults`; empty where it is."""
    newest = faults[-1]
    if allowance.max_restarts == 0:
        return "recovery.max_restarts is 0"
    recent = [f for f in faults if newest.at_s - f.at_s <= allowance.window_s]
    if len(recent) > allowance.max_restarts:
        return (
            f"{len(recent)} faults within {allowance.window_s:g} s, and recovery.max_restarts is "
            f"{allowance.max_restarts}"
        )
    if _in_vain(faults) > MOST_IN_VAIN:
        return f"the last {MOST_IN_VAIN} recoveries came to not a single step"
    if len(faults) > 1 and _same_error(faults[-2].failure, newest.failure):
        return (
            f"rank {faults[-2].failure.rank} and then rank {newest.failure.rank} raised the same "
            f"error at step {newest.failure.step}, so it would come again"
        )
    return ""


def pause_s(faults: Sequence[Fault], allowance: Allowance) -> float:
    """Seconds to wait before the recovery from the last of `faults`."""
    in_vain = _in_vain(faults)
    if in_vain == 0:
        return 0.0
    return min(allowance.backoff_s * 2.0 ** (in_vain - 1), LONGEST_PAUSE_S)


def story(faults: Sequence[Fault], *, lines: int = 10) -> str:
    """The last faults, a line each, oldest first."""
    told = [
        f"step {f.failure.step}: rank {f.failure.rank} on {f.failure.host}, {f.failure.phase}: "
        f"{f.failure.error}"
        for f in faults[-lines:]
    ]
    if len(faults) > lines:
        told.insert(0, f"{len(faults) - lines} earlier faults are in events.jsonl")
    return "\n".join(told)


def _in_vain(faults: Sequence[Fault]) -> int:
    """Faults at the end without a step before them."""
    count = 0
    for fault in reversed(faults):
        if fault.stepped:
            break
        count += 1
    return count


def _same_error(first: Failure, second: Failure) -> bool:
    def key(failure: Failure) -> tuple[int, str]:
        return failure.step, failure.error

    both_own = all(f.kind == "raised" and not f.communication for f in (first, second))
    return both_own and key(first) == key(second)
