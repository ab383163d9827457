"""What came of a planted fault, from the files of the run. Pure decisions.

Guarantees, each asserted in tests/cluster/drills/test_judge.py:
- the incident that is judged is the first one told after the fault was planted;
- losses are equal where the same steps were trained with the same losses, bit for bit, or within
  the bound where the number of ranks changed on the way;
- a step whose batch was left out counts as lost;
- a fault that nobody told of, or after which no step was done, is told as such.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CHANGED_LAYOUT_BOUND = 1e-4
"""Relative, on every loss of a run whose ranks changed on the way: sums of fp32 in another order,
carried on by the steps that follow."""

TOLD = (
    "worker_lost",
    "worker_hung",
    "worker_failed",
    "host_lost",
    "host_silent",
    "straggler",
    "link_slow",
    "numeric_fault",
    "loss_spike",
    "checkpoint_skipped",
    "checkpoint_failed",
)
"""Kinds of events that tell of a fault."""


TELLING = {"nan": "numeric_fault", "fill-disk": "checkpoint_failed"}
"""The kind of event that tells of a fault rightly, where no process, host or link is at fault."""


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A fault as it was planted."""

    drill: str
    at_s: float
    """Seconds since the epoch."""

    step: int
    rank: int | None
    host: str | None
    link: tuple[str, str] | None = None
    """Both ends, where the fault lies between two hosts."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The document that `braid drill --json` prints, but for the folder."""

    drill: str
    detected_s: float | None
    """From the fault to the first event that tells of it."""

    resumed_s: float | None
    """From the fault to the first step after it; None where training never stopped."""

    lost_steps: int
    named: Mapping[str, Any]
    planted: Mapping[str, Any]
    losses_equal: bool
    named_right: bool
    """Whether the event names the rank, the host, or the link or one of its ends, of the fault."""

    @property
    def held(self) -> bool:
        """Whether the run came through it as it should."""
        return self.losses_equal


def judge(
    planted: Planted,
    events: Sequence[Mapping[str, Any]],
    losses: Sequence[tuple[int, float]],
    undisturbed: Sequence[tuple[int, float]],
) -> Verdict:
    """Put together what the run's files say. `losses` are steps with their losses, in order."""
    later = [event for event in events if event["time"] >= planted.at_s]
    told = next((event for event in later if event["kind"] in TOLD), None)
    recovered = next((event for event in later if event["kind"] == "recovered"), None)
    changed = any(event["kind"] == "layout_changed" for event in later)
    return Verdict(
        drill=planted.drill,
        detected_s=None if told is None else told["time"] - planted.at_s,
        resumed_s=None if recovered is None else recovered["time"] - planted.at_s,
        lost_steps=_lost_steps(later, recovered),
        named={
            name: None if told is None else told.get(name)
            for name in ("kind", "rank", "host", "link", "phase", "cause")
        },
        planted={
            "rank": planted.rank,
            "host": planted.host,
            "link": planted.link,
            "step": planted.step,
        },
        losses_equal=same_losses(losses, undisturbed, bound=CHANGED_LAYOUT_BOUND * changed),
        named_right=told is not None and _names(told, planted),
    )


def _lost_steps(later: Sequence[Mapping[str, Any]], recovered: Mapping[str, Any] | None) -> int:
    """Trained anew after a recovery, undone by rollbacks, or left out for their numbers."""
    undone = sum(event["lost_steps"] for event in later if event["kind"] == "rolled_back")
    skipped = sum(event.get("action") == "skip" for event in later)
    return undone + skipped + (0 if recovered is None else int(recovered["lost_steps"]))


def same_losses(
    losses: Sequence[tuple[int, float]],
    undisturbed: Sequence[tuple[int, float]],
    *,
    bound: float,
) -> bool:
    """Whether both trained the same steps with losses that differ by `bound` at most, relative."""
    if [step for step, _ in losses] != [step for step, _ in undisturbed]:
        return False
    pairs = zip(losses, undisturbed, strict=True)
    return all(abs(own - other) <= bound * abs(other) for (_, own), (_, other) in pairs)


def _names(event: Mapping[str, Any], planted: Planted) -> bool:
    if event["kind"] != TELLING.get(planted.drill, event["kind"]):
        return False
    if planted.rank is not None:
        return bool(event.get("rank") == planted.rank)
    if planted.link is not None:
        return sorted(event.get("link") or ()) == sorted(planted.link) or (
            event.get("host") in planted.link
        )
    return planted.host is None or bool(event.get("host") == planted.host)
