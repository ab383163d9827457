"""Where the slow cells of a matrix of delays lie: one link, one sender, one receiver, one end.

Pure. After C4D (arXiv 2406.04594): delays from i (row) to j (column), normalised by the median of
the matrix; one high cell is a bad connection, a high row a bad sender, a high column a bad
receiver. Guarantees, each asserted in tests/cluster/watchdog/test_matrix.py:
- a matrix without a cell over the ratio names nothing;
- a row or column is named only where nearly all of its cells, and no others, are high;
- where most cells are high, nothing is named.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median, median_low
from typing import Literal, TypeVar

End = TypeVar("End", int, str)

Shape = Literal["cell", "row", "column", "cross", "everywhere"]

_MOST = 0.75


@dataclass(frozen=True)
class Located:
    """What is slow: `first` alone for a row, column or cross, both for a cell."""

    shape: Shape
    first: int | str | None
    second: int | str | None
    ratio: float


def normalised(delays: Mapping[tuple[End, End], float]) -> dict[tuple[End, End], float]:
    """Each delay over the lower median, so that the better half is what is usual."""
    middle = median_low(delays.values()) if delays else 1.0
    return {cell: delay / max(middle, 1e-12) for cell, delay in delays.items()}


def locate(cells: Mapping[tuple[End, End], float], *, ratio: float) -> Located | None:
    """Where `cells`, already normalised, are at least `ratio`; None where they nowhere are."""
    high = {cell: value for cell, value in cells.items() if value >= ratio}
    if not high:
        return None
    worst = max(high, key=lambda cell: high[cell])
    middle = median(high.values())
    links = {frozenset(cell) for cell in high}
    if len(links) == 1:
        return Located("cell", worst[0], worst[1], high[worst])
    ends = sorted({end for cell in cells for end in cell}, key=str)
    found: list[tuple[float, Located]] = []
    shapes: tuple[tuple[Shape, tuple[int, ...]], ...] = (
        ("row", (0,)),
        ("column", (1,)),
        ("cross", (0, 1)),
    )
    for shape, sides in shapes:
        for end in ends:
            line = [cell for cell in cells if any(cell[side] == end for side in sides)]
            inside = [cell for cell in line if cell in high]
            if len(line) < 2 or len(inside) < _MOST * len(line):
                continue
            # How much of what is high this line explains; a cross is the weaker claim.
            explained = len(inside) / len(high)
            found.append((explained, Located(shape, end, None, middle)))
    best = max(found, key=lambda item: item[0], default=None)
    if len(high) > _MOST * len(cells) and len(cells) > 2 and _ambiguous(found):
        return Located("everywhere", None, None, middle)
    if best is not None and best[0] >= _MOST:
        return best[1]
    return Located("cell", worst[0], worst[1], high[worst])


def _ambiguous(found: list[tuple[float, Located]]) -> bool:
    """Whether two lines explain equally much."""
    shares = sorted((share for share, _ in found), reverse=True)
    return len(shares) != 1 and (not shares or shares[0] - shares[1] < 1e-9)
