"""Pure: over how many ranks weights, gradients and optimizer states are spread, and which ones.

Guarantees, each asserted in tests/parallel/hierarchy/test_widths.py:
- each width divides the next one, and the widest divides the data ranks;
- every rank stands at exactly one place of the grid, and places name exactly one rank;
- ranks that share weights are neighbours, those that share gradients are neighbouring groups of
  these, and so on: the innermost axis lies on the fastest links;
- pieces cut out of pieces partition a dim, in the order of the places.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from parallel.layout import divisors

AXES = ("replica", "weights", "gradients", "optimizer")
"""Mesh axes. A dim of a tensor is cut over `weights`, each part over `gradients`, each part of
that over `optimizer`; `replica` holds copies."""


@dataclass(frozen=True, kw_only=True)
class Widths:
    """Over how many data ranks each kind of state is spread; 1 is a copy on every rank.

    Raises ValueError where a width does not divide the next one.
    """

    weights: int = 1
    """r_w: weights in the compute dtype, gathered by every forward and backward."""

    gradients: int = 1
    """r_g: fp32 gradients between the rounds of a step."""

    optimizer: int = 1
    """r_o: fp32 master weights and the optimizer's moments."""

    def __post_init__(self) -> None:
        for name, width in (("weights", self.weights), ("gradients", self.gradients)):
            if width < 1:
                raise ValueError(f"{name}={width} must be a positive number of ranks")
        _require_divisor("weights", self.weights, "gradients", self.gradients)
        _require_divisor("gradients", self.gradients, "optimizer", self.optimizer)

    @property
    def cuts(self) -> tuple[int, int, int]:
        """Parts that a tensor is cut into at each of the three levels."""
        return self.weights, self.gradients // self.weights, self.optimizer // self.gradients

    def axis_sizes(self, data_ranks: int) -> tuple[int, int, int, int]:
        """Sizes of `AXES` over this many data ranks.

        Raises ValueError where the widest state does not divide them.
        """
        _require_divisor("optimizer", self.optimizer, "data ranks", data_ranks)
        return (data_ranks // self.optimizer, *self.cuts)


def _require_divisor(inner: str, width: int, outer: str, whole: int) -> None:
    if whole < 1:
        raise ValueError(f"{outer}={whole} must be a positive number of ranks")
    if whole % width:
        raise ValueError(
            f"{inner}={width} does not divide {outer}={whole}: states are spread over equal groups "
            f"of ranks. Choose {inner} from {divisors(whole)}"
        )


def rank_grid(widths: Widths, line: Sequence[int]) -> list[list[list[list[int]]]]:
    """The ranks of one data-parallel line, nested as `AXES` are.

    `line` names the ranks from fast links to slow: neighbours in it are close.
    """
    replicas, inner, middle, outer = widths.axis_sizes(len(line))
    return [
        [
            [
                [line[((r * outer + o) * middle + g) * inner + w] for o in range(outer)]
                for g in range(middle)
            ]
            for w in range(inner)
        ]
        for r in range(replicas)
    ]


def piece(rows: int, parts: int, index: int) -> tuple[int, int]:
    """First row and number of rows of part `index`, as `torch.chunk` and `Shard` cut: all parts
    but the last ones have ceil(rows / parts) rows."""
    size = -(-rows // parts)
    start = min(index * size, rows)
    return start, min(size, rows - start)


def nested_piece(rows: int, cuts: Sequence[int], place: Sequence[int]) -> tuple[int, int]:
    """First row and number of rows after cutting into `cuts[0]` parts, the part `place[0]` of it
    into `cuts[1]` parts, and so on."""
    start = 0
    for parts, index in zip(cuts, place, strict=True):
        offset, rows = piece(rows, parts, index)
        start += offset
    return start, rows
