"""Pure: the sequence groups of one step, and which sequences each of them holds.

    assignment = solve(Problem(lengths_tokens=..., ranks=64, ...), time_limit_s=1.0)
    for groups in assignment.rounds: ...

Packing finds a good answer first; integer programs (HiGHS) then improve it and prove how far from
the best it can be. Sizes of groups may differ inside a round and from round to round.

Guarantees, each asserted in tests/trainer/planner/assignment/test_solve.py:
- every sequence is in exactly one group of one round;
- group sizes are allowed degrees, descend within a round, and sum to at most the ranks, so that
  every group starts at a multiple of its size;
- no group holds more tokens than its ranks have room for;
- the answer is never worse than the best single degree, nor better than its bound;
- the same problem gives the same answer wherever HiGHS is not stopped by the clock. Limits of
  nodes stop it first in all but overloaded cases; one rank decides and tells the others anyhow.
"""

from trainer.planner.assignment.bound import lower_bound_s
from trainer.planner.assignment.counts import Limits
from trainer.planner.assignment.fit import Packing
from trainer.planner.assignment.greedy import Effort, pack_all, total_s
from trainer.planner.assignment.improve import improve, solve_exactly
from trainer.planner.assignment.problem import Assignment, GroupShare, Problem, rounds_s
from trainer.planner.assignment.program import MOST_COLUMNS, columns
from trainer.planner.assignment.prove import raised_bound_s
from trainer.planner.assignment.table import Table, tabulate

EFFORT = Effort(precision=0.003, sweeps=2)

NODES = 200
"""Branches after which an integer program stops with what it has."""

GOOD_GAP = 0.0125
"""Distance to the bound below which no program is asked for more."""


def solve(problem: Problem, *, time_limit_s: float) -> Assignment:
    """The assignment of `problem` with the smallest predicted seconds that the search finds.

    No program is given more than a third of `time_limit_s`, and the first that needs longer ends
    its part of the search. The packing before them takes a fraction of a second for hundreds of
    sequences. A problem without sequences gets no rounds.
    """
    table = tabulate(problem)
    if not table.lengths:
        return _empty(problem)
    static, degree = best_static(table)
    bound_s = lower_bound_s(table)
    packed = pack_all(table, EFFORT, beat_s=total_s(static, table))
    best, how = (packed, "packing") if packed else (static, "one degree")
    if total_s(best, table) > (1.0 + GOOD_GAP) * bound_s:
        improved, bound_s = _by_programs(table, best, bound_s, time_limit_s)
        best, how = (improved, "integer program") if improved is not best else (best, how)
    rounds = shares(best, table)
    predicted_s = rounds_s(rounds, problem)
    bound_s = min(bound_s, predicted_s)
    return Assignment(
        rounds=rounds,
        predicted_s=predicted_s,
        lower_bound_s=bound_s,
        best_static_s=total_s(static, table),
        best_static_degree=degree,
        how=f"{how}, at most {_percent(predicted_s, bound_s)} above the best possible",
    )


def _percent(predicted_s: float, bound_s: float) -> str:
    return f"{100.0 * (predicted_s / bound_s - 1.0) if bound_s > 0.0 else 0.0:.1f} %"


def best_static(table: Table) -> tuple[Packing, int]:
    """The best packing with groups of one size only, and that size."""
    singles = [table.only(degree) for degree in table.degrees]
    able = [
        single
        for single in singles
        if single.lengths[0] <= single.degrees[0] * single.capacity_tokens
    ]
    # The most promising first: what cannot beat it by its bound need not be packed.
    able.sort(key=lambda single: (lower_bound_s(single), single.degrees))
    best = pack_all(able[0], EFFORT)
    if best is None:
        raise RuntimeError(f"degree {able[0].degrees[0]} holds every sequence but was not packed")
    degree = able[0].degrees[0]
    for single in able[1:]:
        found = pack_all(single, EFFORT, beat_s=total_s(best, table))
        if found is not None:
            best, degree = found, single.degrees[0]
    column = table.degrees.index(degree)
    for group in best.groups:
        group.column = column
    return best, degree


def _by_programs(
    table: Table, best: Packing, bound_s: float, time_limit_s: float
) -> tuple[Packing, float]:
    if columns(table, len(best.busy_s)) <= MOST_COLUMNS:
        limits = Limits(time_s=time_limit_s / 3, nodes=50 * NODES)
        best, proven_s = solve_exactly(table, best, limits)
        return best, max(bound_s, proven_s)
    limits = Limits(time_s=time_limit_s / 4, nodes=NODES)
    best = improve(table, best, bound_s, EFFORT, limits)
    answer_s = total_s(best, table)
    raised_s = raised_bound_s(
        table, bound_s=bound_s, answer_s=answer_s, precision=GOOD_GAP, limits=limits
    )
    return best, raised_s


def shares(packing: Packing, table: Table) -> tuple[tuple[GroupShare, ...], ...]:
    """The packing in terms of the problem, largest groups first, sequences ascending."""
    rounds: list[list[GroupShare]] = [[] for _ in packing.busy_s]
    for group in packing.groups:
        sequences = tuple(sorted(table.positions[row] for row in group.members))
        rounds[group.round].append(
            GroupShare(size=table.degrees[group.column], sequences=sequences)
        )
    for groups in rounds:
        groups.sort(key=lambda share: (-share.size, share.sequences))
    return tuple(tuple(groups) for groups in rounds if groups)


def _empty(problem: Problem) -> Assignment:
    return Assignment(
        rounds=(),
        predicted_s=0.0,
        lower_bound_s=0.0,
        best_static_s=0.0,
        best_static_degree=problem.degrees[0],
        how="nothing to assign",
    )
