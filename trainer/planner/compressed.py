"""Pure: plans that say how replicas send their gradients, whichever planner made them.

Guarantees, each asserted in tests/trainer/planner/test_compressed.py:
- the choice of a step follows from its number alone: whole at first where the method wants that,
  then with a ratio that falls to its final value;
- predicted communication is what is left of the planner's own once fewer bytes travel, and what is
  observed reaches the planner as if all of them had;
- everything else of the plan is the planner's own, and reasons say what is sent, and why.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from comms.compression.config import (
    WHOLE,
    ReplicaConfig,
    StepChoice,
    begins_dense,
    choice_at,
)
from trainer.planner.costs import Hardware
from trainer.planner.plan import StepPlan, Terms
from trainer.planner.protocol import Planner


class CompressedPlanner:
    """`planner`, for replicas that compress as `config` says."""

    def __init__(
        self,
        planner: Planner,
        config: ReplicaConfig,
        *,
        replica_bytes: Callable[[StepChoice], int],
        other_bytes: Callable[[StepPlan], int],
    ) -> None:
        """`replica_bytes` are those of one rank and step with a choice, `other_bytes` what it sends
        besides."""
        self._planner = planner
        self._config = config
        self._replica_bytes = replica_bytes
        self._other_bytes = other_bytes

    @property
    def hardware(self) -> Hardware:
        """Rates as corrected so far."""
        return self._planner.hardware

    def choose(self, step: int, lengths_tokens: Sequence[int]) -> StepPlan:
        """The planner's plan for `step`, counted from 1, with what replicas send."""
        plan = self._planner.choose(step, lengths_tokens)
        choice = choice_at(step - 1, self._config)
        sent_bytes = self._replica_bytes(choice)
        plan = replace(plan, compression=str(choice), replica_bytes=sent_bytes)
        communication_s = plan.predicted.communication_s * self._share(plan)
        return replace(
            plan,
            predicted=replace(plan.predicted, communication_s=communication_s),
            reasons=(*plan.reasons, self._reason(step - 1, choice, sent_bytes)),
        )

    def observe(self, plan: StepPlan, measured: Terms) -> None:
        """Pass on what `plan` took, communication as if all bytes had been sent."""
        communication_s = measured.communication_s / self._share(plan)
        self._planner.observe(plan, replace(measured, communication_s=communication_s))

    def _share(self, plan: StepPlan) -> float:
        """Of the bytes that a rank would send uncompressed, those that it sends."""
        assert plan.replica_bytes is not None
        other_bytes = self._other_bytes(plan)
        whole_bytes = other_bytes + self._replica_bytes(WHOLE)
        return max(1, other_bytes + plan.replica_bytes) / max(1, whole_bytes)

    def _reason(self, step: int, choice: StepChoice, sent_bytes: int) -> str:
        whole_bytes = self._replica_bytes(WHOLE)
        if begins_dense(step, self._config):
            return (
                f"replicas send whole gradients ({whole_bytes:,} bytes) in the first "
                f"{self._config.dense_steps} steps, so that second moments begin at full size"
            )
        fewer = f"{sent_bytes:,} bytes instead of {whole_bytes:,}"
        warming = choice.ratio is not None and step < self._config.warmup_steps
        until = f" until step {self._config.warmup_steps}, to begin gently" if warming else ""
        return f"replicas send {choice} as the recipe says{until}: {fewer}"
