"""Pure: plans that say what islands exchange after a step, whichever planner made them.

Guarantees, each asserted in tests/trainer/planner/test_outer.py:
- everything else of the plan is the planner's own, and what it observes has no other island in it;
- fragments leave and are merged as `StreamingDiloco` does it;
- what of a message does not pass while the overlap goes on is predicted as waiting, and the rate
  between islands follows what was waited.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from comms.outer.schedule import OuterSchedule
from trainer.planner.costs import SMOOTHING, Hardware
from trainer.planner.plan import OuterPlan, StepPlan, Terms
from trainer.planner.protocol import Planner


@dataclass(frozen=True, kw_only=True)
class OuterCosts:
    """What islands exchange, and over what."""

    schedule: OuterSchedule
    sent_bytes: tuple[int, ...]
    """Per fragment: what a rank sends to all other islands."""

    bytes_per_s: float
    """Between islands, of a rank while all others send."""

    first_step: int = 0
    """The step before the first one after which a fragment may leave."""


class IslandPlanner:
    """`planner`, on one of several islands."""

    def __init__(self, planner: Planner, costs: OuterCosts) -> None:
        self._planner = planner
        self._costs = costs
        self._bytes_per_s = costs.bytes_per_s
        self._step_s = 0.0

    @property
    def hardware(self) -> Hardware:
        """Rates inside the island as corrected so far."""
        return self._planner.hardware

    @property
    def bytes_per_s(self) -> float:
        """Rate between islands as corrected so far."""
        return self._bytes_per_s

    def choose(self, step: int, lengths_tokens: Sequence[int]) -> StepPlan:
        """The planner's plan for `step`, with what is exchanged after it."""
        plan = self._planner.choose(step, lengths_tokens)
        outer = outer_plan(step, self._costs)
        step_s = self._step_s or plan.predicted.total_s
        islands_s = 0.0
        if outer.merges is not None:
            hidden_s = self._costs.schedule.overlap_steps * step_s
            sent_s = self._costs.sent_bytes[outer.merges] / self._bytes_per_s
            islands_s = max(0.0, sent_s - hidden_s)
        return replace(plan, outer=outer, predicted=replace(plan.predicted, islands_s=islands_s))

    def observe(self, plan: StepPlan, measured: Terms) -> None:
        """Learn from what `plan` took."""
        alone = replace(measured, islands_s=0.0)
        self._planner.observe(plan, alone)
        self._step_s = alone.total_s
        if plan.outer is None or plan.outer.merges is None or measured.islands_s <= 0.0:
            return
        # Waiting tells the rate; where nothing was waited for, it is only known to be enough.
        took_s = self._costs.schedule.overlap_steps * self._step_s + measured.islands_s
        seen = self._costs.sent_bytes[plan.outer.merges] / took_s
        self._bytes_per_s = (1 - SMOOTHING) * self._bytes_per_s + SMOOTHING * seen


def outer_plan(step: int, costs: OuterCosts) -> OuterPlan:
    """What leaves after `step`, counted from 1, and what is merged."""
    schedule = costs.schedule
    sends = _fragment(step, schedule) if schedule.leaves(step) else None
    left = step - schedule.overlap_steps
    merges = None
    if schedule.merges(step) and left > costs.first_step:
        merges = _fragment(left, schedule)
    sent_bytes = 0 if sends is None else costs.sent_bytes[sends]
    return OuterPlan(sends=sends, merges=merges, sent_bytes=sent_bytes)


def _fragment(step: int, schedule: OuterSchedule) -> int:
    return schedule.fragment(step // schedule.period - 1)
