"""Which groups teach something, and what a step says when none does. Pure Python.

A group is the samples of one prompt. Guarantees, each asserted in tests/trainer/rl/test_groups.py:
- a group is trained on only if all its rewards are there and finite and not all are equal;
- every group left out has a reason with the prompt's index and the value;
- a step without a single useful group says that it learned nothing, and why.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import isfinite


class Use(StrEnum):
    """What a group is good for."""

    TRAINED = "trained"
    EQUAL = "equal"
    """All rewards the same: every advantage is zero."""

    FAULT = "fault"
    """The reward failed."""


@dataclass(frozen=True)
class Verdict:
    """On one group."""

    prompt: int
    """Index of the prompt in its task."""

    use: Use
    reason: str = ""
    """Why it is left out."""


@dataclass(frozen=True)
class Learning:
    """What the groups of a step come to."""

    verdicts: tuple[Verdict, ...]

    def count(self, use: Use) -> int:
        """Groups of that use."""
        return sum(verdict.use is use for verdict in self.verdicts)

    @property
    def trained(self) -> tuple[int, ...]:
        """Indices, in the step, of the groups to train on."""
        return tuple(i for i, v in enumerate(self.verdicts) if v.use is Use.TRAINED)

    @property
    def message(self) -> str:
        """One sentence where the step learned nothing, else empty."""
        if self.trained:
            return ""
        if not self.verdicts:
            return "the step learned nothing: it has no groups"
        reasons = "; ".join(dict.fromkeys(v.reason for v in self.verdicts[:3]))
        return (
            f"the step learned nothing: of {len(self.verdicts)} groups {self.count(Use.EQUAL)} "
            f"have equal rewards and {self.count(Use.FAULT)} no reward ({reasons})"
        )


def judge(
    prompt: int, rewards: Sequence[float] | None, *, samples: int, fault: str = ""
) -> Verdict:
    """What the group of `samples` samples is good for.

    `rewards` are those before any shaping by length, so that length alone never makes a group
    useful (DAPO's dynamic sampling, arXiv 2503.14476, eq. 11). `fault` says why there are none.
    """
    if rewards is None:
        return Verdict(prompt, Use.FAULT, f"prompt {prompt}: {fault or 'no reward arrived'}")
    if len(rewards) != samples:
        return Verdict(
            prompt, Use.FAULT, f"prompt {prompt}: {len(rewards)} rewards for {samples} samples"
        )
    bad = next((reward for reward in rewards if not isfinite(reward)), None)
    if bad is not None:
        return Verdict(prompt, Use.FAULT, f"prompt {prompt}: a reward is {bad}")
    if min(rewards) == max(rewards):
        return Verdict(prompt, Use.EQUAL, f"prompt {prompt}: all rewards are {rewards[0]:g}")
    return Verdict(prompt, Use.TRAINED)
