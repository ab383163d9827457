"""The planner that forms sequence groups anew for every round (FlexSP, arXiv 2412.01523).

Guarantees, each asserted in tests/trainer/planner/test_groups.py:
- every sequence of the step is in exactly one group of one round;
- no rank holds more than `max_tokens_per_device` tokens in a round, padding included;
- groups start at a multiple of their size, and each shares attention by a scheme of its size;
- with one allowed size all groups have it.
"""

from collections.abc import Sequence

from parallel.layout import Layout
from parallel.sequence.stretches import padding_multiple
from trainer.planner.assignment.problem import Assignment, GroupShare, Problem
from trainer.planner.assignment.solve import solve
from trainer.planner.batch import BatchArithmetic
from trainer.planner.costs import SMOOTHING, Hardware, ModelCost, refit
from trainer.planner.plan import Activation, Round, SequenceGroup, StepPlan, Terms
from trainer.planner.sharing_costs import SharingCosts, causal_pairs

PLANNING_SHARE = 0.1
"""Part of a step's time that choosing the next one may take from it."""


class GroupPlanner:
    """Sequence groups of different sizes, by the lengths of each batch."""

    def __init__(
        self,
        *,
        layout: Layout,
        arithmetic: BatchArithmetic,
        activation: Activation,
        model: ModelCost,
        hardware: Hardware,
        degrees: tuple[int, ...],
        ranks_per_host: int,
    ) -> None:
        self._layout = layout
        # Even where ranks share, so that padding never needs more room than they have.
        tokens = arithmetic.max_tokens_per_device
        self._rank_tokens = tokens if max(degrees) == 1 else max(tokens // 2 * 2, 1)
        self._activation: Activation = activation
        self._model = model
        self._hardware = hardware
        self._degrees = degrees
        self._ranks_per_host = ranks_per_host
        self._observations = 0
        self._lengths: dict[int, tuple[int, ...]] = {}

    @property
    def hardware(self) -> Hardware:
        """Rates as corrected so far."""
        return self._hardware

    @property
    def longest_tokens(self) -> int:
        """Longest sequence that some group holds."""
        return self._rank_tokens * max(self._degrees)

    def choose(self, step: int, lengths_tokens: Sequence[int]) -> StepPlan:
        """Plan `step`, whose global batch has sequences of these lengths."""
        costs = self._costs()
        assignment = self._assign(lengths_tokens, costs)
        rounds = tuple(_placed(groups, lengths_tokens, costs) for groups in assignment.rounds)
        self._lengths[step] = tuple(lengths_tokens)
        return StepPlan(
            step=step,
            layout=self._layout,
            rounds=rounds,
            padding="group",
            activation=self._activation,
            predicted=self._predict(rounds, lengths_tokens, costs),
            reasons=(_why(assignment),),
        )

    def observe(self, plan: StepPlan, measured: Terms) -> None:
        """Correct the rates by what `plan` really took.

        The first step of a process warms caches up and says nothing; the second replaces the
        start's rough rates; every later one moves them a little.
        """
        self._observations += 1
        lengths_tokens = self._lengths.pop(plan.step)
        if self._observations == 1:
            return
        # Plans are made a step ahead, with older rates; what is corrected is today's prediction.
        self._hardware = refit(
            self._hardware,
            predicted=self._predict(plan.rounds, lengths_tokens, self._costs()),
            measured=measured,
            weight=1.0 if self._observations == 2 else SMOOTHING,
        )

    def _costs(self) -> SharingCosts:
        return SharingCosts(
            layout=self._layout,
            model=self._model,
            hardware=self._hardware,
            recompute=self._activation == "recompute",
            ranks_per_host=self._ranks_per_host,
        )

    def _assign(self, lengths_tokens: Sequence[int], costs: SharingCosts) -> Assignment:
        problem = Problem(
            lengths_tokens=tuple(lengths_tokens),
            ranks=self._layout.data_ranks,
            capacity_tokens=self._rank_tokens,
            costs=costs.of_sequences(self._degrees, self._rank_tokens, lengths_tokens),
            degrees=self._degrees,
        )
        work_s = sum(problem.costs.sequence_s(length, 1) for length in lengths_tokens)
        return solve(problem, time_limit_s=PLANNING_SHARE * work_s / problem.ranks)

    def _predict(
        self, rounds: Sequence[Round], lengths_tokens: Sequence[int], costs: SharingCosts
    ) -> Terms:
        compute_s = exchange_s = 0.0
        for groups in rounds:
            parts = [_seconds(group, lengths_tokens, costs) for group in groups.groups]
            slowest = max(parts, key=sum, default=(0.0, 0.0))
            compute_s, exchange_s = compute_s + slowest[0], exchange_s + slowest[1]
        layout, rates = self._layout, self._hardware
        return Terms(
            compute_s=compute_s,
            communication_s=exchange_s * rates.exposed_fraction
            + len(rounds) * costs.round_communication_s,
            update_s=self._model.parameters
            / (layout.shard * layout.tp * layout.pp)
            / rates.update_parameters_per_s,
            bubble_s=rates.bubble_s,
            data_s=rates.data_s,
        )


def _placed(
    groups: Sequence[GroupShare], lengths_tokens: Sequence[int], costs: SharingCosts
) -> Round:
    """Groups side by side, largest first, each with the scheme for its tokens."""
    placed, first_rank = [], 0
    for share in groups:
        lengths = [lengths_tokens[i] for i in share.sequences]
        scheme, _ = costs.scheme(sum(lengths), share.size, causal_pairs(lengths))
        placed.append(
            SequenceGroup(
                first_rank=first_rank,
                size=share.size,
                sequences=share.sequences,
                attention=scheme,
            )
        )
        first_rank += share.size
    return Round(groups=tuple(placed))


def _seconds(
    group: SequenceGroup, lengths_tokens: Sequence[int], costs: SharingCosts
) -> tuple[float, float]:
    """Compute and exposed communication of one group."""
    lengths = [lengths_tokens[i] for i in group.sequences]
    multiple = padding_multiple(group.attention)
    tokens = -(-sum(lengths) // multiple) * multiple
    exposed_s = costs.exposed_s(group.attention, tokens, causal_pairs(lengths))
    return costs.compute_s(lengths, group.size), exposed_s


def _why(assignment: Assignment) -> str:
    gain = assignment.best_static_s / assignment.predicted_s if assignment.predicted_s else 1.0
    return (
        f"groups by {assignment.how}; all groups of {assignment.best_static_degree} would take "
        f"{gain:.2f} times as long"
    )
