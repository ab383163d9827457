"""Pure: a problem's sequences, longest first, with their seconds at every degree.

Guarantees, each asserted in tests/trainer/planner/assignment/test_table.py:
- lengths descend, and equal lengths keep the order of their positions;
- a degree that cannot hold a sequence costs infinite seconds.

Shapes: S sequences, D degrees.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from trainer.planner.assignment.problem import Problem

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Table:
    """What every part of the search looks up."""

    degrees: tuple[int, ...]
    ranks: int
    capacity_tokens: int
    fixed_s: float
    positions: tuple[int, ...]
    """Where each sequence stands in the problem."""

    lengths: tuple[int, ...]
    """Tokens, descending."""

    seconds_SD: Floats
    """Seconds that a sequence adds to a group of a degree; infinite where it cannot be held."""

    @cached_property
    def seconds(self) -> list[list[float]]:
        """`seconds_SD` for loops over single sequences."""
        rows: list[list[float]] = self.seconds_SD.tolist()
        return rows

    @cached_property
    def rank_seconds_SD(self) -> Floats:
        """Seconds times the ranks they keep busy."""
        return self.seconds_SD * np.array(self.degrees)

    def only(self, degree: int) -> "Table":
        """The same sequences with a single degree allowed."""
        column = self.degrees.index(degree)
        return Table(
            degrees=(degree,),
            ranks=self.ranks,
            capacity_tokens=self.capacity_tokens,
            fixed_s=self.fixed_s,
            positions=self.positions,
            lengths=self.lengths,
            seconds_SD=self.seconds_SD[:, column : column + 1],
        )

    def rows(self, rows: Sequence[int]) -> "Table":
        """Some of the sequences; `rows` ascend."""
        return Table(
            degrees=self.degrees,
            ranks=self.ranks,
            capacity_tokens=self.capacity_tokens,
            fixed_s=self.fixed_s,
            positions=tuple(self.positions[row] for row in rows),
            lengths=tuple(self.lengths[row] for row in rows),
            seconds_SD=self.seconds_SD[list(rows)],
        )


def tabulate(problem: Problem) -> Table:
    """Sort the sequences of `problem` and look their costs up once."""
    lengths = problem.lengths_tokens
    positions = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    costs = problem.costs
    lengths_S = np.array([lengths[i] for i in positions], dtype=np.float64)
    work_S = (costs.quadratic_s * lengths_S + costs.linear_s) * lengths_S
    columns = []
    for degree in problem.degrees:
        exchange_s = costs.exchange_s_per_token[degree] if degree > 1 else 0.0
        seconds_S = work_S / degree + exchange_s * lengths_S
        columns.append(np.where(lengths_S <= degree * problem.capacity_tokens, seconds_S, np.inf))
    return Table(
        degrees=problem.degrees,
        ranks=problem.ranks,
        capacity_tokens=problem.capacity_tokens,
        fixed_s=costs.fixed_s,
        positions=tuple(positions),
        lengths=tuple(lengths[i] for i in positions),
        seconds_SD=np.stack(columns, axis=1).reshape(len(positions), len(problem.degrees)),
    )
