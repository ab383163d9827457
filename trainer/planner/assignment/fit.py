"""Pure: sequences packed into groups that finish by a given time, and the shortest such time.

The greedy half of the search: bin packing with bins of several sizes, longest sequence first
(MULTIFIT, Coffman, Garey and Johnson 1978). A sequence goes where the least time is left over;
where no open group has room, a group of the size that keeps the fewest ranks busy is opened.

Guarantees, each asserted in tests/trainer/planner/assignment/test_fit.py:
- every sequence is in exactly one group;
- no group takes longer than its round's target or holds more tokens than its ranks have room for;
- the groups of a round use at most the ranks there are.
"""

from bisect import bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from trainer.planner.assignment.table import Table

LOOKS = 16
"""Groups of one size that are looked at for one sequence before another size is tried."""

FACTORS = (1.003, 1.02, 1.06, 1.15, 1.4, 2.0, 4.0, inf)
"""Multiples of the bound that are tried in turn, until all sequences fit."""

SLACK = 1.0 + 1e-12
"""Sums of the same seconds in another order differ in the last digits."""


@dataclass(slots=True)
class Group:
    """One group while it is being filled."""

    round: int
    column: int
    """Which of the table's degrees."""

    seconds: float
    tokens: int
    members: list[int]
    """Rows of the table."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Packing:
    """All groups of all rounds, and the seconds of each round's slowest group."""

    groups: tuple[Group, ...]
    busy_s: tuple[float, ...]

    @property
    def total_s(self) -> float:
        """Seconds of all rounds without their fixed part."""
        return sum(self.busy_s)


class _Rounds:
    """Open groups by round and degree, those of one degree in order of their seconds."""

    def __init__(self, table: Table, targets_s: Sequence[float]) -> None:
        self.table = table
        self.targets_s = [target * SLACK for target in targets_s]
        self.free = [table.ranks for _ in targets_s]
        self.groups: list[Group] = []
        self.room = [degree * table.capacity_tokens for degree in table.degrees]
        self.shortest = min(table.lengths, default=0)
        # Largest degree first: what its groups have left costs nothing to fill.
        columns = range(len(table.degrees) - 1, -1, -1)
        self.open: list[list[tuple[int, list[tuple[float, int]]]]] = [
            [(column, []) for column in columns] for _ in targets_s
        ]

    def add_to_open(self, row: int) -> bool:
        """Put `row` into the group with the least time left over; False when none has room."""
        seconds = self.table.seconds[row]
        length = self.table.lengths[row]
        for number, by_column in enumerate(self.open):
            target = self.targets_s[number]
            for column, entries in by_column:
                limit = target - seconds[column]
                if not entries or entries[0][0] > limit:
                    continue
                place = self._place(entries, limit, self.room[column] - length)
                if place is not None:
                    self._grow(entries, place, row, column)
                    return True
        return False

    def _place(
        self, entries: list[tuple[float, int]], limit: float, most_tokens: int
    ) -> int | None:
        last = bisect_right(entries, (limit, len(self.groups))) - 1
        for place in range(last, max(last - LOOKS, -1), -1):
            if self.groups[entries[place][1]].tokens <= most_tokens:
                return place
        if last >= 0 and self.groups[entries[0][1]].tokens <= most_tokens:
            return 0
        return None

    def _grow(self, entries: list[tuple[float, int]], place: int, row: int, column: int) -> None:
        _, name = entries.pop(place)
        group = self.groups[name]
        group.seconds += self.table.seconds[row][column]
        group.tokens += self.table.lengths[row]
        group.members.append(row)
        self._keep(entries, name, group)

    def _keep(self, entries: list[tuple[float, int]], name: int, group: Group) -> None:
        if group.tokens + self.shortest <= self.room[group.column]:
            insort(entries, (group.seconds, name))

    def open_for(self, row: int, preferred: int | None) -> bool:
        """Open a group for `row`, of the preferred column or the one that is cheapest in ranks."""
        seconds = self.table.seconds[row]
        degrees = self.table.degrees
        for number, target in enumerate(self.targets_s):
            free = self.free[number]
            best, best_cost = -1, inf
            for column, degree in enumerate(degrees):
                if degree > free or seconds[column] > target:
                    continue
                cost = -1.0 if column == preferred else degree * seconds[column]
                if cost < best_cost:
                    best, best_cost = column, cost
            if best >= 0:
                self._open(row, number, best)
                return True
        return False

    def _open(self, row: int, number: int, column: int) -> None:
        self.free[number] -= self.table.degrees[column]
        length = self.table.lengths[row]
        group = Group(number, column, self.table.seconds[row][column], length, [row])
        self.groups.append(group)
        largest = len(self.table.degrees) - 1
        self._keep(self.open[number][largest - column][1], len(self.groups) - 1, group)

    def packing(self) -> Packing:
        busy_s = [0.0] * len(self.targets_s)
        for group in self.groups:
            busy_s[group.round] = max(busy_s[group.round], group.seconds)
        return Packing(groups=tuple(self.groups), busy_s=tuple(busy_s))


def fit(
    table: Table, targets_s: Sequence[float], preferred: Sequence[int] | None = None
) -> Packing | None:
    """Pack all sequences into rounds whose groups take at most `targets_s`, or None.

    `preferred` names, for each row, the column to open a group of when one must be opened.
    """
    rounds = _Rounds(table, targets_s)
    for row in range(len(table.lengths)):
        column = preferred[row] if preferred is not None else None
        if not rounds.add_to_open(row) and not rounds.open_for(row, column):
            return None
    return rounds.packing()


def shortest_round(
    table: Table,
    *,
    bound_s: float,
    precision: float,
    preferred: Sequence[int] | None = None,
) -> Packing | None:
    """One round of all sequences, about as short as `fit` can make it; None if they do not fit."""
    low, best = bound_s, None
    for factor in FACTORS:
        target = bound_s * factor if factor < inf else inf
        best = fit(table, (target,), preferred)
        if best is not None:
            break
        low = target
    if best is None:
        return None
    while best.total_s - low > precision * best.total_s:
        middle = (low + best.total_s) / 2
        found = fit(table, (middle,), preferred)
        if found is None:
            low = middle
        else:
            best = found
    return best
