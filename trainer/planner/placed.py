"""Pure: plans that say where the optimizer's states are, whichever planner made them.

Guarantees, each asserted in tests/trainer/planner/test_placed.py:
- everything else of the plan is the planner's own;
- what is observed reaches the planner.
"""

from collections.abc import Sequence
from dataclasses import replace

from trainer.planner.costs import Hardware
from trainer.planner.plan import StepPlan, Terms
from trainer.planner.protocol import Planner


class PlacedPlanner:
    """`planner`, for states that are outside the device."""

    def __init__(self, planner: Planner, *, optimizer: str, share: float | None) -> None:
        """`share` of the states in host memory is updated by the device; None follows rates."""
        self._planner = planner
        self._optimizer = optimizer
        self._share = share

    @property
    def hardware(self) -> Hardware:
        """Rates as corrected so far."""
        return self._planner.hardware

    def choose(self, step: int, lengths_tokens: Sequence[int]) -> StepPlan:
        """The planner's plan for `step`, with the place of the states."""
        plan = self._planner.choose(step, lengths_tokens)
        return replace(plan, optimizer=self._optimizer, optimizer_share=self._share)

    def observe(self, plan: StepPlan, measured: Terms) -> None:
        """Pass on what `plan` took."""
        self._planner.observe(plan, measured)
