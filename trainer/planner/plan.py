"""The hot choice of one step, and the terms of its time. Pure data.

Guarantees, each asserted in tests/trainer/planner/test_fixed.py:
- every sequence of the step is in exactly one group of one round;
- in a round no rank is in two groups;
- the same arguments give the same plan on every rank.
"""

from dataclasses import dataclass, fields
from typing import Literal

from parallel.layout import Layout

Activation = Literal["keep", "recompute"]


@dataclass(frozen=True, kw_only=True)
class Terms:
    """Seconds of one step by cause, the same names in prediction and in measurement."""

    compute_s: float = 0.0
    """Forward and backward arithmetic."""

    communication_s: float = 0.0
    """Communication that compute did not hide."""

    copies_s: float = 0.0
    """Copies between memory tiers that compute did not hide."""

    update_s: float = 0.0
    """Clipping and the optimizer."""

    bubble_s: float = 0.0
    """Waiting for other ranks' work."""

    data_s: float = 0.0
    """Waiting for the next batch."""

    @property
    def total_s(self) -> float:
        """Sum of all terms."""
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True, kw_only=True)
class SequenceGroup:
    """Neighbouring ranks that hold some packed sequences together for one round."""

    first_rank: int
    size: int
    sequences: tuple[int, ...]
    """Positions in the step's global batch."""

    @property
    def ranks(self) -> range:
        """The ranks of the group."""
        return range(self.first_rank, self.first_rank + self.size)


@dataclass(frozen=True, kw_only=True)
class Round:
    """One forward and backward of every rank. A rank in no group runs it without tokens."""

    groups: tuple[SequenceGroup, ...]

    def sequences_of(self, rank: int) -> tuple[int, ...]:
        """What `rank` works on, or nothing."""
        for group in self.groups:
            if rank in group.ranks:
                return group.sequences
        return ()


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """Everything that may differ from step to step. A plan never changes the gradient."""

    step: int
    layout: Layout
    rounds: tuple[Round, ...]
    activation: Activation = "keep"
    attention: str = "local"
    optimizer: str = "device"
    compression: str = "none"
    predicted: Terms = Terms()
    reasons: tuple[str, ...] = ()
    """Why these choices, a sentence each."""

    plan_s: float = 0.0
    """Seconds it took to decide."""
