"""What the training loop asks of a planner."""

from collections.abc import Sequence
from typing import Protocol

from trainer.planner.costs import Hardware
from trainer.planner.plan import StepPlan, Terms


class Planner(Protocol):
    """Chooses each step's plan, and learns from what the step really took."""

    @property
    def hardware(self) -> Hardware:
        """Rates as corrected so far."""

    def choose(self, step: int, lengths_tokens: Sequence[int]) -> StepPlan:
        """Plan `step`, whose global batch has sequences of these lengths. Called once per step, in
        order, on rank 0 alone."""

    def observe(self, plan: StepPlan, measured: Terms) -> None:
        """Take note of what `plan` took. Called after each step, in order, on rank 0 alone."""
