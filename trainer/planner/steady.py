"""Sequences of any length, each on one rank, dealt out by their lengths alone.

Rates that a machine measures differ from run to run, and with them the order in which rounds add up
gradients. Where a step has to be repeated bit by bit, its plan must not know them.

Guarantees, each asserted in tests/trainer/planner/test_steady.py:
- every sequence is on exactly one rank in one round, and no rank holds more than it has room for;
- the same lengths give the same rounds, whatever was measured;
- no rank has more work than the mean and one sequence, where room does not force it;
- there are as few rounds as this way of packing finds.
"""

from collections.abc import Sequence

from trainer.planner.assignment.problem import Assignment, GroupShare
from trainer.planner.groups import GroupPlanner
from trainer.planner.sharing_costs import SharingCosts


class SteadyPlanner(GroupPlanner):
    """Rounds by lengths; predictions by rates, corrected like any planner's."""

    def _assign(self, lengths_tokens: Sequence[int], costs: SharingCosts) -> Assignment:
        model = costs.model
        work = [
            n * model.linear_flops_per_token + n * n * model.quadratic_flops for n in lengths_tokens
        ]
        return Assignment(
            rounds=deal(
                lengths_tokens,
                work,
                ranks=self._layout.data_ranks,
                capacity_tokens=self._rank_tokens,
            ),
            predicted_s=0.0,
            lower_bound_s=0.0,
            best_static_s=0.0,
            best_static_degree=1,
            how="length, longest first",
        )


def deal(
    lengths_tokens: Sequence[int], work: Sequence[float], *, ranks: int, capacity_tokens: int
) -> tuple[tuple[GroupShare, ...], ...]:
    """Rounds of ranks with their sequences: longest first, each to whom has least to do and room
    left (Graham 1969). Ranks that have alike much to do share a round.

    Raises ValueError for a sequence that no rank holds.
    """
    longest = max(lengths_tokens, default=0)
    if longest > capacity_tokens:
        raise ValueError(
            f"a sequence of {longest} tokens is longer than max_tokens_per_device="
            f"{capacity_tokens}; raise it, or shorten the sequence"
        )
    order = sorted(range(len(lengths_tokens)), key=lambda i: (-work[i], i))
    rounds = -(-sum(lengths_tokens) // (ranks * capacity_tokens))
    hands = None
    while hands is None:
        hands = _dealt(order, lengths_tokens, work, rounds * ranks, capacity_tokens)
        rounds += 1
    hands.sort(key=lambda hand: (-sum(work[i] for i in hand), hand))
    busy = [GroupShare(size=1, sequences=tuple(sorted(hand))) for hand in hands if hand]
    return tuple(tuple(busy[at : at + ranks]) for at in range(0, len(busy), ranks))


def _dealt(
    order: Sequence[int],
    lengths_tokens: Sequence[int],
    work: Sequence[float],
    hands: int,
    capacity_tokens: int,
) -> list[list[int]] | None:
    """The sequences of each hand; None where one found no room."""
    held: list[list[int]] = [[] for _ in range(hands)]
    tokens, load = [0] * hands, [0.0] * hands
    for place in order:
        able = [h for h in range(hands) if tokens[h] + lengths_tokens[place] <= capacity_tokens]
        if not able:
            return None
        hand = min(able, key=lambda h: (load[h], h))
        held[hand].append(place)
        tokens[hand] += lengths_tokens[place]
        load[hand] += work[place]
    return held
