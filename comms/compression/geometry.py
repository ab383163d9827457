"""Pure: which parts of a flat gradient are compressed, and as what matrices."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt, prod

from comms.compression.config import CompressionConfig


@dataclass(frozen=True)
class Matrix:
    """A run of the flat gradient, read as `rows` times `cols`."""

    start: int
    rows: int
    cols: int

    @property
    def end(self) -> int:
        """Index behind its last entry."""
        return self.start + self.rows * self.cols


@dataclass(frozen=True)
class Geometry:
    """How one flat gradient is cut. All ranks cut it alike."""

    numel: int
    dense: tuple[tuple[int, int], ...]
    """Runs (start, end) that travel uncompressed."""

    matrices: tuple[Matrix, ...]
    """What is left, in order."""

    @property
    def dense_numel(self) -> int:
        """Entries that travel uncompressed."""
        return sum(end - start for start, end in self.dense)

    @property
    def compressed_numel(self) -> int:
        """Entries that are compressed."""
        return self.numel - self.dense_numel


def cut(numel: int, shapes: Sequence[Sequence[int]] | None, config: CompressionConfig) -> Geometry:
    """Cut a flat gradient of tensors that lie in it one after another.

    Vectors and tensors below `dense_below` stay dense, and for low-rank methods also those that
    would not halve. To these methods a tensor of three dimensions, such as the weights of all
    experts, is a stack of matrices where that has the smaller factors. Without `shapes` the whole
    is one nearly square matrix, unless it is small.
    Raises ValueError where the shapes do not add up to `numel`.
    """
    if shapes is None:
        shapes = [(numel,)] if numel < config.dense_below else _square(numel, config)
    if (total := sum(prod(shape) for shape in shapes)) != numel:
        raise ValueError(f"The shapes hold {total} entries and the gradient {numel}: pass all.")
    dense: list[tuple[int, int]] = []
    matrices: list[Matrix] = []
    start = 0
    for shape in shapes:
        end = start + prod(shape)
        if found := _matrices(start, shape, config):
            matrices += found
        elif dense and dense[-1][1] == start:
            dense[-1] = (dense[-1][0], end)
        elif end > start:
            dense.append((start, end))
        start = end
    return Geometry(numel, tuple(dense), tuple(matrices))


def low_rank(config: CompressionConfig) -> bool:
    """Whether matrices are needed, and not just entries."""
    if config.method == "powersgd":
        return True
    return config.method in ("econtrol", "ef", "ef21") and config.contraction == "low_rank"


def _matrices(start: int, shape: Sequence[int], config: CompressionConfig) -> list[Matrix]:
    """A tensor that begins at `start`, as what it is compressed as; none where it stays dense."""
    size = prod(shape)
    if len(shape) < 2 or size < max(config.dense_below, 1):
        return []
    whole = [Matrix(start, shape[0], size // shape[0])]
    if not low_rank(config):
        return whole
    found = whole
    if len(shape) == 3:
        _, rows, cols = shape
        stack = [Matrix(at, rows, cols) for at in range(start, start + size, rows * cols)]
        found = min(whole, stack, key=_lengths)
    return found if 2 * config.rank * _lengths(found) < size else []


def _lengths(matrices: Sequence[Matrix]) -> int:
    """Entries of all their factors, per rank."""
    return sum(matrix.rows + matrix.cols for matrix in matrices)


def _square(numel: int, config: CompressionConfig) -> list[tuple[int, ...]]:
    """A nearly square matrix and, for low-rank methods, the few entries that do not fill a row."""
    if not low_rank(config):
        return [(numel, 1)]
    cols = max(1, isqrt(numel))
    rows = numel // cols
    return [(rows, cols), (numel - rows * cols,)]
