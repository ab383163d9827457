"""Pure: the best assignment that packing alone finds, for one degree or for all of them.

Guarantees, each asserted in tests/trainer/planner/assignment/test_greedy.py:
- an answer is always found, if need be with more rounds;
- shortening the rounds together never makes the sum longer than that of the cut it starts from.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import inf

from trainer.planner.assignment.bound import busy_bound_s, fewest_rounds
from trainer.planner.assignment.fit import Group, Packing, fit, shortest_round
from trainer.planner.assignment.rounds import Cut, cut_by_seconds, cut_by_tokens
from trainer.planner.assignment.table import Table

EXTRA_ROUNDS = 4
"""Rounds tried beyond the fewest that hold the sequences."""

PATIENCE = 2
"""Numbers of rounds tried without a better answer."""

LONGEST = 8
"""Sequences whose seconds are tried as the length of the first round."""

TRIES = 6
"""Packings tried for each of them."""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is tried before the best so far is the answer."""

    precision: float
    """Relative width at which the search for a round's seconds stops."""

    sweeps: int
    """How often all rounds are shortened in turn."""

    starts: int = 2
    """Packings from which that starts."""

    placements: int = 60_000
    """Sequences put somewhere, or looked at in vain, before shortening stops."""

    def tries(self, table: Table, rounds: int) -> int:
        """Packings of all sequences into so many rounds that this is worth."""
        return 1 + 2 * self.placements // (len(table.lengths) * (rounds + 1))


def pack_all(table: Table, effort: Effort, *, beat_s: float = inf) -> Packing | None:
    """The best packing over the numbers of rounds worth trying, or None if none beats `beat_s`.

    Both count the rounds' fixed part.
    """
    best: Packing | None = None
    fewest = rounds = _fewest_packed(table)
    busy_s = busy_bound_s(table)
    in_vain = 0
    while rounds <= len(table.lengths) and rounds * table.fixed_s + busy_s < beat_s:
        found = pack_rounds(table, rounds, effort)
        if found is not None and total_s(found, table) < beat_s:
            best, beat_s, in_vain = found, total_s(found, table), 0
        else:
            in_vain += 1
        if in_vain >= PATIENCE or rounds >= fewest + EXTRA_ROUNDS:
            break
        rounds += 1
    return best


def _fewest_packed(table: Table) -> int:
    """The fewest rounds into which the sequences are packed when time does not matter."""
    low = high = fewest_rounds(table)
    while high < len(table.lengths) and fit(table, [inf] * high) is None:
        low, high = high + 1, min(2 * high, len(table.lengths))
    while low < high:
        middle = (low + high) // 2
        enough = fit(table, [inf] * middle) is not None
        low, high = (low, middle) if enough else (middle + 1, high)
    return high


def total_s(packing: Packing, table: Table) -> float:
    """Seconds of all rounds, their fixed part included."""
    return packing.total_s + len(packing.busy_s) * table.fixed_s


def pack_rounds(table: Table, rounds: int, effort: Effort) -> Packing | None:
    """The best packing into `rounds` rounds, or None where the tokens do not fit."""
    cuts = {cut_by_tokens(table.lengths, rounds), cut_by_seconds(table, rounds)}
    packings = [pack_cut(table, cut, effort) for cut in sorted(cut for cut in cuts if cut)]
    # Where like lengths do not fill their rounds, only mixed ones hold all sequences.
    found = [p for p in packings if p is not None] or [
        p for p in [fit(table, [inf] * rounds)] if p is not None
    ]
    if not found:
        return None
    best = min(found, key=lambda packing: packing.total_s)
    if rounds == 1:
        return best
    found += from_longest(table, best, effort)
    found.sort(key=lambda packing: packing.total_s)
    shortened = [shorten(table, packing, effort) for packing in found[: effort.starts]]
    return min(shortened, key=lambda packing: packing.total_s)


def from_longest(table: Table, packing: Packing, effort: Effort) -> list[Packing]:
    """Packings whose first round lasts just as long as one of the longest sequences at a degree.

    A little less, and that sequence needs a larger group, which keeps more ranks busy: the sum
    over all rounds has its minima there. The other rounds are made equally short.
    """
    others = len(packing.busy_s) - 1
    thresholds = {seconds for row in table.seconds[:LONGEST] for seconds in row}
    thresholds.add(packing.total_s / (others + 1))
    packings: list[Packing] = []
    left = effort.tries(table, len(packing.busy_s))
    for first_s in sorted(thresholds):
        if left <= 0:
            break
        low, high = 0.0, (packing.total_s - first_s) / others
        if not first_s * 0.99 <= packing.total_s or first_s < high * 0.99:
            continue
        found: Packing | None = None
        for _ in range(TRIES):
            tried_s = high if found is None else (low + high) / 2
            trial = fit(table, (first_s, *[tried_s] * others))
            left -= 1
            if trial is None and found is None:
                break
            if trial is None:
                low = tried_s
            else:
                found, high = trial, min(tried_s, max(trial.busy_s[1:]))
        if found is not None:
            packings.append(found)
    return packings


def pack_cut(table: Table, cut: Cut, effort: Effort) -> Packing | None:
    """Each round of a cut packed on its own."""
    rounds = [range(first, last) for first, last in pairwise((0, *cut))]
    return pack_each(table, rounds, effort)


def pack_each(
    table: Table,
    rounds: Sequence[Sequence[int]],
    effort: Effort,
    preferred: Sequence[int] | None = None,
) -> Packing | None:
    """Each round packed on its own, given its rows in ascending order; None where they do not fit.

    `preferred` names for every row the column of a group to open for it.
    """
    groups: list[Group] = []
    busy_s: list[float] = []
    for number, rows in enumerate(rounds):
        part = table.rows(rows)
        packing = shortest_round(
            part,
            bound_s=busy_bound_s(part),
            precision=effort.precision,
            preferred=None if preferred is None else [preferred[row] for row in rows],
        )
        if packing is None:
            return None
        for group in packing.groups:
            members = [rows[row] for row in group.members]
            groups.append(replace(group, round=number, members=members))
        busy_s += packing.busy_s
    return Packing(groups=tuple(groups), busy_s=tuple(busy_s))


def shorten(table: Table, packing: Packing, effort: Effort) -> Packing:
    """Shorten the rounds together: sequences move to where another round has time left over.

    Each round in turn is made as short as the others allow; then each one's target is set to a
    multiple of its seconds, and a neighbour is made as short as the sequences then allow.
    """
    best, left = packing, effort.tries(table, len(packing.busy_s))
    for _ in range(effort.sweeps):
        before_s = best.total_s
        for given, factor, taken in _trades(len(best.busy_s)):
            if left <= 0:
                return best
            best, used = _traded(table, best, (given, factor, taken), effort)
            left -= used
        if best.total_s > before_s * (1.0 - effort.precision):
            break
    return best


def _trades(rounds: int) -> list[tuple[int, float, int]]:
    """Which round's target is multiplied by what, and which round is shortened for it."""
    alone = [(number, 1.0, number) for number in range(rounds)]
    neighbours = [
        (number, factor, other)
        for number in range(rounds)
        for factor in (1.04, 0.96, 1.15, 0.87)
        for other in sorted({(number + 1) % rounds, (number - 1) % rounds} - {number})
    ]
    return alone + neighbours


def _traded(
    table: Table, packing: Packing, trade: tuple[int, float, int], effort: Effort
) -> tuple[Packing, int]:
    """The better of `packing` and what the trade gives, and how many packings that took."""
    given, factor, taken = trade
    targets_s = list(packing.busy_s)
    targets_s[given] *= factor
    kept_s = sum(targets_s) - targets_s[taken]
    high = packing.total_s * (1.0 - effort.precision / 4) - kept_s
    best, low, used = packing, 0.0, 0
    # The first try asks for any gain at all; most trades end here.
    target_s = high
    while target_s > 0.0 and high - low > effort.precision * packing.total_s / 2:
        used += 1
        found = fit(table, _with(targets_s, taken, target_s))
        if found is None:
            if best is packing:
                break
            low = target_s
        else:
            best = found if found.total_s < best.total_s else best
            high = min(target_s, found.busy_s[taken])
        target_s = (low + high) / 2
    return best, used


def _with(targets_s: Sequence[float], place: int, target_s: float) -> list[float]:
    changed = list(targets_s)
    changed[place] = target_s
    return changed
