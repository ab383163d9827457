"""Addresses with the lowest peak: MEMO's integer program (arXiv 2407.12117, section 4.2) on HiGHS.

Guarantees, each asserted in tests/offload/memory_plan/test_program.py:
- a placement is valid, and never worse than the greedy one;
- `optimal` is said only where the peak equals the lower bound or the solver proved it.

minimise M  subject to  A_i + S_i <= M  for every request, and for every pair alive together
A_i + S_i <= A_j + z_ij C  and  A_j + S_j <= A_i + (1 - z_ij) C,  with binary z_ij and C the greedy
peak. Addresses are counted in units of the largest common divisor of the sizes, which keeps the
solver's tolerances far from a byte.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from offload.memory_plan.greedy import place_greedily
from offload.memory_plan.requests import (
    Placement,
    Request,
    aligned,
    conflicts,
    find_overlap,
    lower_bound_bytes,
    peak_bytes,
)

ALIGNMENT = 512
"""What CUDA's caching allocator aligns to."""

PROVED = 0
"""HiGHS's status for a solution that is optimal."""


def plan_addresses(
    requests: Sequence[Request], *, alignment: int = ALIGNMENT, time_limit_s: float = 10.0
) -> Placement:
    """Addresses for `requests`, whose names differ; the best that is found in `time_limit_s`.

    Raises:
        ValueError: Two requests have one name.
    """
    if len({r.name for r in requests}) != len(requests):
        raise ValueError(f"{len(requests)} requests need as many names; number them")
    rounded = aligned(requests, alignment)
    addresses = place_greedily(rounded)
    bound = lower_bound_bytes(rounded)
    best = peak_bytes(rounded, addresses)
    optimal = best == bound
    if not optimal and rounded:
        found, optimal = _solve(rounded, best, bound, time_limit_s)
        if found is not None and peak_bytes(rounded, found) <= best:
            addresses = found
    empty = {r.name: 0 for r in requests if r.size_bytes == 0}
    return Placement(
        addresses=empty | addresses,
        peak_bytes=peak_bytes(rounded, addresses),
        lower_bound_bytes=bound,
        optimal=optimal,
    )


def _solve(
    requests: Sequence[Request], cap_bytes: int, bound_bytes: int, time_limit_s: float
) -> tuple[dict[str, int] | None, bool]:
    """Addresses and whether they are proved best; None where the solver found none in time."""
    unit = math.gcd(*(r.size_bytes for r in requests))
    sizes = [r.size_bytes // unit for r in requests]
    cap = cap_bytes // unit
    pairs = conflicts(requests)
    count = len(requests)
    rows = _Rows(count + len(pairs) + 1)
    for i, size in enumerate(sizes):
        rows.add({i: 1.0, -1: -1.0}, -size)
    for p, (i, j) in enumerate(pairs):
        rows.add({i: 1.0, j: -1.0, count + p: -cap}, -sizes[i])
        rows.add({j: 1.0, i: -1.0, count + p: cap}, cap - sizes[j])
    variables = count + len(pairs) + 1
    highest = [cap - size for size in sizes] + [1] * len(pairs) + [cap]
    lowest = [0] * (variables - 1) + [bound_bytes // unit]
    objective = np.zeros(variables)
    objective[-1] = 1.0
    result = milp(
        objective,
        constraints=rows.constraint(),
        bounds=Bounds(np.array(lowest, dtype=float), np.array(highest, dtype=float)),
        integrality=np.array([1] * variables),
        options={"time_limit": time_limit_s},
    )
    if result.x is None:
        return None, False
    found = {r.name: round(result.x[i]) * unit for i, r in enumerate(requests)}
    if find_overlap(requests, found) is not None:
        return None, False
    return found, result.status == PROVED


class _Rows:
    """Rows of `coefficients · x <= limit`; column -1 is the last."""

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self._entries: list[tuple[int, int, float]] = []
        self._limits: list[float] = []

    def add(self, coefficients: dict[int, float], limit: float) -> None:
        """One more row."""
        row = len(self._limits)
        for column, value in coefficients.items():
            self._entries.append((row, column % self._columns, float(value)))
        self._limits.append(float(limit))

    def constraint(self) -> LinearConstraint:
        """All of them."""
        row, column, value = zip(*self._entries, strict=True)
        matrix = coo_array((value, (row, column)), shape=(len(self._limits), self._columns))
        return LinearConstraint(matrix.tocsr(), -np.inf, np.array(self._limits))
