"""What came of the loss of a process that samples, from the files of the run. Pure decisions.

A run by rewards samples beside training, so its losses need not be those of an undisturbed one;
what a loss may not cost is a prompt.

Guarantees, each asserted in tests/cluster/drills/test_prompts.py:
- a prompt that was begun, and that no step trained and no judgement dropped, counts as lost;
- the loss that is judged is the first one told after the fault was planted;
- it holds where the right process was named, another took its place, all steps were done and no
  prompt was lost.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_SETTLED = ("taken", "trained", "dropped")
"""States of prompts with which a finished run has done; the last step's commit may be untold."""


@dataclass(frozen=True, kw_only=True)
class LostSampler:
    """A process that samples, and when it was ended."""

    worker: str
    host: str
    at_s: float
    """Seconds since the epoch."""

    step: int


@dataclass(frozen=True, kw_only=True)
class PromptsVerdict:
    """The document that `braid drill kill-rollout --json` prints, but for the folder."""

    drill: str
    detected_s: float | None
    """From the fault to the event that tells of it."""

    resumed_s: float | None
    """From the fault to another process in its place."""

    given_on: int
    """Prompts that it was answering, which others took over."""

    prompts: int
    """That the run began in all."""

    lost_prompts: int
    missing_steps: int
    named: Mapping[str, Any]
    planted: Mapping[str, Any]
    named_right: bool

    @property
    def held(self) -> bool:
        """Whether the run came through it as it should."""
        whole = self.lost_prompts == 0 and self.missing_steps == 0
        return whole and self.named_right and self.resumed_s is not None


def judge_prompts(
    planted: LostSampler,
    events: Sequence[Mapping[str, Any]],
    *,
    steps: Sequence[int],
    total_steps: int,
    ledger: Mapping[str, Any],
) -> PromptsVerdict:
    """Put together what the run's files say. `steps` are those in its metrics, `ledger` the prompts
    as it left them."""
    later = [event for event in events if event["time"] >= planted.at_s]
    told = next((event for event in later if event["kind"] == "rollout_lost"), None)
    seat = planted.worker.partition(".")[0]
    started = [event for event in later if event["kind"] == "rollout_started"]
    again = next((e for e in started if e["worker"].partition(".")[0] == seat), None)
    return PromptsVerdict(
        drill="kill-rollout",
        detected_s=None if told is None else told["time"] - planted.at_s,
        resumed_s=None if again is None else again["time"] - planted.at_s,
        given_on=0 if told is None else int(told["prompts"]),
        prompts=int(ledger["first_number"]),
        lost_prompts=lost_prompts(ledger),
        missing_steps=total_steps - len(set(steps)),
        named={
            name: None if told is None else told.get(name) for name in ("kind", "worker", "cause")
        },
        planted={"worker": planted.worker, "host": planted.host, "step": planted.step},
        named_right=told is not None and told["worker"] == planted.worker,
    )


def lost_prompts(ledger: Mapping[str, Any]) -> int:
    """Prompts of a finished run's ledger that were begun and are not done with."""
    records = ledger["records"]
    known = ledger["settled_below"] + len(ledger["settled"]) + len(records)
    unsettled = sum(record["state"] not in _SETTLED for record in records)
    return int(ledger["first_number"]) - int(known) + unsettled
