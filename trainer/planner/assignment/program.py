"""Pure: the best assignment of a few sequences to a few ranks, by an integer program.

Names every group and every sequence (FlexSP, arXiv 2412.01523, with rounds added), so it decides
exactly, and only fits small problems; counts.py is for the others.

Guarantees, each asserted in tests/trainer/planner/assignment/test_program.py:
- what it finds within its limits of nodes is the best assignment into that many rounds;
- its bound is never above the best assignment.

Per sequence s, round r and group p of d_p ranks, with a_srp and u_rp either 0 or 1:

    minimise sum_r M_r
    sum_rp a_srp = 1                                 every sequence once
    sum_s w_s,d(p) * a_srp <= M_r                    time
    sum_s length_s * a_srp <= d_p * capacity * u_rp  room
    sum_p d_p * u_rp <= ranks
    u_rp >= u_rp', M_r >= M_r+1                      groups of one size, and rounds, are alike
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from trainer.planner.assignment.counts import Limits
from trainer.planner.assignment.fit import Group, Packing
from trainer.planner.assignment.table import Floats, Table

MOST_COLUMNS = 240
"""Choices (sequence, round, group) up to which naming them all pays."""


@dataclass(frozen=True, kw_only=True)
class Exact:
    """The best packing found, if any, and seconds that no packing into these rounds beats."""

    packing: Packing | None
    bound_s: float


def columns(table: Table, rounds: int) -> int:
    """Choices that a program for `rounds` rounds has."""
    return len(table.lengths) * rounds * len(_group_columns(table))


def best_packing(table: Table, rounds: int, limits: Limits) -> Exact:
    """Solve the program with HiGHS. Seconds do not count the rounds' fixed part."""
    program = _Program(table, rounds)
    result = milp(
        program.objective(),
        constraints=program.constraints(),
        bounds=program.bounds(),
        integrality=program.integrality(),
        options={"time_limit": limits.time_s, "node_limit": limits.nodes, "mip_rel_gap": 1e-6},
    )
    if result.status == 2:
        return Exact(packing=None, bound_s=np.inf)
    # None where it stopped before the first bound was known.
    bound_s = float(result.mip_dual_bound or 0.0)
    if result.x is None:
        return Exact(packing=None, bound_s=bound_s * (1.0 - 1e-6))
    return Exact(packing=program.packing(result.x), bound_s=bound_s * (1.0 - 1e-6))


def _group_columns(table: Table) -> list[int]:
    """The column of each group that a round may have."""
    return [
        column
        for column, degree in enumerate(table.degrees)
        for _ in range(min(table.ranks // degree, len(table.lengths)))
    ]


class _Program:
    """Rows and columns, dense. Shapes: S sequences, R rounds, P groups of a round."""

    def __init__(self, table: Table, rounds: int) -> None:
        self.table = table
        self.rounds = rounds
        self.kinds = _group_columns(table)
        self.shape = (len(table.lengths), rounds, len(self.kinds))
        self.choices = int(np.prod(self.shape))
        self.groups = rounds * len(self.kinds)
        self.columns = self.choices + self.groups + rounds
        seconds_SP = table.seconds_SD[:, self.kinds]
        self.allowed_SRP = np.broadcast_to(np.isfinite(seconds_SP)[:, None, :], self.shape)
        self.seconds_SP = np.where(np.isfinite(seconds_SP), seconds_SP, 0.0)
        self.degrees_P = np.array(table.degrees)[self.kinds]

    def choice(self, r: int, p: int) -> range:
        """Columns of all sequences for one group."""
        _, rounds, groups = self.shape
        return range(r * groups + p, self.choices, rounds * groups)

    def used(self, r: int, p: int) -> int:
        """Column that says whether a group exists."""
        return self.choices + r * len(self.kinds) + p

    def seconds(self, r: int) -> int:
        """Column of a round's seconds."""
        return self.choices + self.groups + r

    def objective(self) -> Floats:
        costs = np.zeros(self.columns)
        costs[self.choices + self.groups :] = 1.0
        return costs

    def bounds(self) -> Bounds:
        upper = np.ones(self.columns)
        upper[: self.choices] = self.allowed_SRP.ravel()
        upper[self.choices + self.groups :] = np.inf
        return Bounds(0.0, upper)

    def integrality(self) -> Floats:
        whole = np.ones(self.columns)
        whole[self.choices + self.groups :] = 0.0
        return whole

    def constraints(self) -> list[LinearConstraint]:
        once = np.zeros((self.shape[0], self.columns))
        per_sequence = self.rounds * len(self.kinds)
        for s in range(self.shape[0]):
            once[s, s * per_sequence : (s + 1) * per_sequence] = 1.0
        at_most_zero = [*self._loads(), *self._alike()]
        ranks = [self._ranks(r) for r in range(self.rounds)]
        return [
            LinearConstraint(once, 1.0, 1.0),
            LinearConstraint(np.array(ranks), -np.inf, self.table.ranks),
            LinearConstraint(np.array(at_most_zero), -np.inf, 0.0),
        ]

    def _ranks(self, r: int) -> Floats:
        row = np.zeros(self.columns)
        for p, degree in enumerate(self.degrees_P):
            row[self.used(r, p)] = degree
        return row

    def _loads(self) -> list[Floats]:
        rows = []
        lengths = np.array(self.table.lengths, dtype=np.float64)
        for r in range(self.rounds):
            for p, degree in enumerate(self.degrees_P):
                time, room = np.zeros(self.columns), np.zeros(self.columns)
                time[self.choice(r, p)] = self.seconds_SP[:, p]
                time[self.seconds(r)] = -1.0
                room[self.choice(r, p)] = lengths / (degree * self.table.capacity_tokens)
                room[self.used(r, p)] = -1.0
                rows += [time, room]
        return rows

    def _alike(self) -> list[Floats]:
        rows = []
        for r in range(self.rounds):
            for p, (one, other) in enumerate(pairwise(self.kinds)):
                if one == other:
                    rows.append(self._descending(self.used(r, p), self.used(r, p + 1)))
        for r in range(self.rounds - 1):
            rows.append(self._descending(self.seconds(r), self.seconds(r + 1)))
        return rows

    def _descending(self, first: int, second: int) -> Floats:
        row = np.zeros(self.columns)
        row[first], row[second] = -1.0, 1.0
        return row

    def packing(self, solution: Floats) -> Packing:
        """The solution as groups."""
        taken_SRP = solution[: self.choices].reshape(self.shape) > 0.5
        groups = []
        busy_s = [0.0] * self.rounds
        for r in range(self.rounds):
            for p, column in enumerate(self.kinds):
                members = [int(s) for s in np.flatnonzero(taken_SRP[:, r, p])]
                if members:
                    groups.append(_group(self.table, r, column, members))
                    busy_s[r] = max(busy_s[r], groups[-1].seconds)
        return Packing(groups=tuple(groups), busy_s=tuple(busy_s))


def _group(table: Table, number: int, column: int, members: Sequence[int]) -> Group:
    return Group(
        round=number,
        column=column,
        seconds=sum(table.seconds[row][column] for row in members),
        tokens=sum(table.lengths[row] for row in members),
        members=list(members),
    )
