"""The planner that does what the recipe says, predicts what it costs, and learns from the answer.

Guarantees, each asserted in tests/trainer/planner/test_fixed.py:
- every sequence of the step is on exactly one rank in exactly one round;
- no rank holds more than `max_tokens_per_device` tokens in a round;
- ranks differ by at most one sequence per step.
"""

from collections.abc import Sequence

from parallel.layout import Layout
from trainer.planner.batch import BatchArithmetic
from trainer.planner.costs import SMOOTHING, Hardware, ModelCost, predict, refit
from trainer.planner.plan import Activation, Round, SequenceGroup, StepPlan, Terms


class FixedPlanner:
    """One rank per sequence, rounds as the batch arithmetic says."""

    def __init__(
        self,
        *,
        layout: Layout,
        arithmetic: BatchArithmetic,
        activation: Activation,
        model: ModelCost,
        hardware: Hardware,
    ) -> None:
        self._layout = layout
        self._arithmetic = arithmetic
        self._activation: Activation = activation
        self._model = model
        self._hardware = hardware
        self._observations = 0
        self._rank_tokens: dict[int, int] = {}

    @property
    def hardware(self) -> Hardware:
        """Rates as corrected so far."""
        return self._hardware

    def choose(self, step: int, lengths_tokens: Sequence[int]) -> StepPlan:
        """Plan `step`, whose global batch has sequences of these lengths."""
        rounds = assign(lengths_tokens, self._arithmetic)
        rank_tokens = max(
            sum(lengths_tokens[i] for r in rounds for i in r.sequences_of(rank))
            for rank in range(self._layout.data_ranks)
        )
        self._rank_tokens[step] = rank_tokens
        return StepPlan(
            step=step,
            layout=self._layout,
            rounds=rounds,
            activation=self._activation,
            predicted=self._predict(rank_tokens, len(rounds)),
            reasons=("the recipe fixes every choice", self._arithmetic.explain()),
        )

    def _predict(self, rank_tokens: int, rounds: int) -> Terms:
        return predict(
            rank_tokens=rank_tokens,
            rounds=rounds,
            recompute=self._activation == "recompute",
            layout=self._layout,
            model=self._model,
            hardware=self._hardware,
        )

    def observe(self, plan: StepPlan, measured: Terms) -> None:
        """Correct the rates by what `plan` really took.

        The first step of a process warms caches up and says nothing; the second replaces the
        start's rough rates; every later one moves them a little.
        """
        self._observations += 1
        rank_tokens = self._rank_tokens.pop(plan.step)
        if self._observations == 1:
            return
        weight = 1.0 if self._observations == 2 else SMOOTHING
        # Plans are made a step ahead, with older rates; what is corrected is today's prediction.
        predicted = self._predict(rank_tokens, len(plan.rounds))
        self._hardware = refit(
            self._hardware, predicted=predicted, measured=measured, weight=weight
        )


def assign(lengths_tokens: Sequence[int], arithmetic: BatchArithmetic) -> tuple[Round, ...]:
    """Deal the sequences out: rank r takes r, r + world, r + 2 world, …, a round at a time."""
    world, per_device = arithmetic.data_ranks, arithmetic.sequences_per_device
    hands = [tuple(range(rank, len(lengths_tokens), world)) for rank in range(world)]
    rounds = []
    for start in range(0, max(len(hand) for hand in hands), per_device):
        groups = tuple(
            SequenceGroup(first_rank=rank, size=1, sequences=hand[start : start + per_device])
            for rank, hand in enumerate(hands)
            if hand[start : start + per_device]
        )
        rounds.append(Round(groups=groups))
    return tuple(rounds)
