"""Pure: how many groups of each degree, and how many sequences of each bucket on each degree.

The integer half of the search, for rounds that shall take given seconds. Groups of one degree are
alike, so the program counts them instead of naming them: its size does not grow with the ranks.
FlexSP (arXiv 2412.01523) names every group; there 1,024 ranks are out of reach.

Guarantees, each asserted in tests/trainer/planner/assignment/test_counts.py:
- every packing within the seconds is a solution, so that no solution means no packing;
- a solution uses at most the ranks there are, and every sequence once.

Per class r of rounds, degree d and bucket q of sequences that take w_qd seconds and have s_q
tokens, with integers n_rd (groups) and a_qrd (sequences):

    minimise sum d * w_qd * a_qrd                    rank-seconds
    sum_rd a_qrd = sequences of q                    every sequence once
    sum_q w_qd * a_qrd <= seconds_r * n_rd           time
    sum_q s_q * a_qrd <= d * capacity * n_rd         room
    sum_{q big} a_qrd <= k * n_rd                    big: k + 1 of them exceed one group's time,
                                                     or one group's room; k = 1, 2, 3
    sum_d d * n_rd <= ranks * rounds_r               rounds of the same seconds count as one r
    sum_qrd d * w_qd * a_qrd <= ranks * busy         busy: seconds of all rounds together
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from trainer.planner.assignment.table import Floats, Table

SHARED_BY = (1, 2, 3)
"""How many sequences of one group the rows about big sequences speak of."""


@dataclass(frozen=True, kw_only=True)
class Buckets:
    """Sequences taken as alike. Shapes: Q buckets, D degrees."""

    counts: NDArray[np.int64]
    lengths: Floats
    seconds_QD: Floats

    @classmethod
    def shortest(cls, table: Table, ends: Sequence[int]) -> "Buckets":
        """Every sequence as short as the shortest of its bucket: no program of these overstates."""
        last = np.array(ends) - 1
        return cls(
            counts=np.diff(np.concatenate([[0], ends])).astype(np.int64),
            lengths=np.array(table.lengths, dtype=np.float64)[last],
            seconds_QD=table.seconds_SD[last],
        )

    @classmethod
    def mean(cls, table: Table, ends: Sequence[int]) -> "Buckets":
        """Every sequence as the mean of its bucket: sums over whole buckets are exact."""
        starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
        counts = np.array(ends, dtype=np.int64) - starts
        lengths = np.add.reduceat(np.array(table.lengths, dtype=np.float64), starts) / counts
        seconds_QD = np.add.reduceat(table.seconds_SD, starts, axis=0) / counts[:, None]
        return cls(counts=counts, lengths=lengths, seconds_QD=seconds_QD)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """When HiGHS stops looking."""

    time_s: float
    nodes: int


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Seconds that rounds shall take at most; rounds of the same seconds are one class."""

    seconds: tuple[float, ...]
    rounds: tuple[int, ...]
    """Rounds of each class."""

    busy_s: float
    """At most the sum over all rounds."""

    @classmethod
    def single(cls, seconds: Sequence[float]) -> "Targets":
        """Every round a class of its own."""
        return cls(seconds=tuple(seconds), rounds=(1,) * len(seconds), busy_s=sum(seconds))


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What the program says. `possible` is None when HiGHS stopped before it knew."""

    possible: bool | None
    sequences_QRD: NDArray[np.int64] | None = None


def count_groups(
    table: Table, buckets: Buckets, targets: Targets, limits: Limits, *, whole: bool = True
) -> Counts:
    """Solve the program with HiGHS; `whole=False` drops the integers and only asks whether it can.

    Rounding inside HiGHS is allowed for: targets are taken a millionth longer.
    """
    program = _Program(table, buckets, targets)
    if not program.complete:
        return Counts(possible=False)
    variables = program.sequences + program.groups
    result = milp(
        program.costs(),
        constraints=program.constraints(),
        bounds=Bounds(0.0, np.inf),
        integrality=np.full(variables, int(whole)),
        options={
            "time_limit": limits.time_s,
            "node_limit": limits.nodes,
            "mip_rel_gap": 1e-3,
        },
    )
    if result.x is None:
        return Counts(possible=False if result.status == 2 else None)
    return Counts(possible=True, sequences_QRD=program.sequences_QRD(result.x) if whole else None)


class _Program:
    """Rows and columns. Shapes: Q buckets, R rounds, D degrees; V columns for sequences."""

    def __init__(self, table: Table, buckets: Buckets, targets: Targets) -> None:
        self.table, self.buckets, self.targets = table, buckets, targets
        self.targets_s = targets_s = np.array(targets.seconds) * (1.0 + 1e-6)
        seconds_QRD = np.broadcast_to(
            buckets.seconds_QD[:, None, :],
            (len(buckets.counts), len(targets_s), len(table.degrees)),
        )
        self.shape = seconds_QRD.shape
        allowed_QRD = seconds_QRD <= targets_s[None, :, None]
        self.complete = bool(allowed_QRD.any(axis=(1, 2)).all())
        self.q, self.r, self.d = np.nonzero(allowed_QRD)
        self.seconds = seconds_QRD[self.q, self.r, self.d]
        self.lengths = buckets.lengths[self.q]
        self.degrees = np.array(table.degrees, dtype=np.float64)
        self.sequences = len(self.q)
        self.groups = self.shape[1] * self.shape[2]
        self.kind = self.r * self.shape[2] + self.d
        """Which (round, degree) a column for sequences belongs to."""

    def costs(self) -> Floats:
        """Rank-seconds of each column, relative to all there are."""
        rank_seconds = self.seconds * self.degrees[self.d]
        scale = self.table.ranks * max(self.targets.busy_s, 1e-300)
        return np.concatenate([rank_seconds / scale, np.zeros(self.groups)])

    def constraints(self) -> list[LinearConstraint]:
        """All rows, as sparse blocks."""
        once = coo_array(
            (np.ones(self.sequences), (self.q, np.arange(self.sequences))),
            shape=(self.shape[0], self.sequences + self.groups),
        ).tocsr()
        counts = self.buckets.counts
        target = np.repeat(self.targets_s, self.shape[2])
        room = np.tile(self.degrees, self.shape[1]) * self.table.capacity_tokens
        # Rows are divided by one group's time and room, which keeps HiGHS's tolerances meaningful.
        time_share = self.seconds / target[self.kind]
        room_share = self.lengths / room[self.kind]
        rows = [LinearConstraint(once, counts, counts), self._ranks()]
        rows.append(LinearConstraint(self.costs()[None, :], -np.inf, 1.0 + 1e-6))
        for share in (time_share, room_share):
            rows.append(self._per_kind(share, 1))
            for most in SHARED_BY:
                big = share > (1.0 + 1e-6) / (most + 1)
                rows.append(self._per_kind(big.astype(np.float64), most))
        return rows

    def _ranks(self) -> LinearConstraint:
        kinds = np.arange(self.groups)
        matrix = coo_array(
            (
                np.tile(self.degrees, self.shape[1]),
                (kinds // self.shape[2], self.sequences + kinds),
            ),
            shape=(self.shape[1], self.sequences + self.groups),
        ).tocsr()
        return LinearConstraint(matrix, -np.inf, self.table.ranks * np.array(self.targets.rounds))

    def _per_kind(self, shares: Floats, most: int) -> LinearConstraint:
        """The shares on all groups of one kind sum to at most `most` per group."""
        kinds = np.arange(self.groups)
        used = np.flatnonzero(shares)
        matrix = coo_array(
            (
                np.concatenate([shares[used], np.full(self.groups, -float(most))]),
                (
                    np.concatenate([self.kind[used], kinds]),
                    np.concatenate([used, self.sequences + kinds]),
                ),
            ),
            shape=(self.groups, self.sequences + self.groups),
        ).tocsr()
        return LinearConstraint(matrix, -np.inf, 0.0)

    def sequences_QRD(self, solution: Floats) -> NDArray[np.int64]:
        """The columns for sequences, as numbers of sequences."""
        counts = np.zeros(self.shape, dtype=np.int64)
        counts[self.q, self.r, self.d] = np.rint(solution[: self.sequences]).astype(np.int64)
        return counts
