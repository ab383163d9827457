"""Matrices as products of two thin ones, found by power iteration (PowerSGD, arXiv 1905.13727).

The factors of all matrices of a flat gradient lie one after another in two vectors, `left` (rows
times rank each) and `right` (columns times rank each), so that each travels in one piece. In each,
column follows on column: sizes differ between columns, and neighbours may share a scale.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from comms.compression.config import ValueFormat
from comms.compression.geometry import Matrix
from comms.compression.method import Step, generator
from comms.compression.state import Slot
from comms.compression.wire import decode_values, value_bytes

# N rows, M columns, R rank.


def left_numel(matrices: Sequence[Matrix], rank: int) -> int:
    """Entries of all left factors."""
    return sum(matrix.rows for matrix in matrices) * rank


def right_numel(matrices: Sequence[Matrix], rank: int) -> int:
    """Entries of all right factors."""
    return sum(matrix.cols for matrix in matrices) * rank


def factor_bytes(matrices: Sequence[Matrix], rank: int, form: ValueFormat) -> int:
    """Bytes of both."""
    left = value_bytes(left_numel(matrices, rank), form)
    return left + value_bytes(right_numel(matrices, rank), form)


def decode_factors(
    code: Tensor, matrices: Sequence[Matrix], rank: int, form: ValueFormat
) -> tuple[Tensor, Tensor]:
    """Left and right factors of a code of both."""
    left, right = left_numel(matrices, rank), right_numel(matrices, rank)
    end = value_bytes(left, form)
    return decode_values(code[:end], form, left), decode_values(code[end:], form, right)


def first_right(step: Step, like: Tensor, rank: int) -> Tensor:
    """Right factors to begin with, the same on all ranks."""
    size = right_numel(step.geometry.matrices, rank)
    return torch.randn(size, generator=generator(step.seed, like.device), device=like.device)


def multiply(x: Tensor, right: Tensor, matrices: Sequence[Matrix], rank: int) -> Tensor:
    """Left factors: each matrix in flat `x` times its right factor, made orthonormal first."""
    left = x.new_empty(left_numel(matrices, rank))
    for matrix, left_NR, right_MR in _pairs(left, right, matrices, rank):
        orthonormalise(right_MR)
        torch.mm(x[matrix.start : matrix.end].view(matrix.rows, -1), right_MR, out=left_NR)
    return left


def multiply_transposed(x: Tensor, left: Tensor, matrices: Sequence[Matrix], rank: int) -> Tensor:
    """Right factors: each transposed matrix times its left factor."""
    right = x.new_empty(right_numel(matrices, rank))
    for matrix, left_NR, right_MR in _pairs(left, right, matrices, rank):
        torch.mm(x[matrix.start : matrix.end].view(matrix.rows, -1).T, left_NR, out=right_MR)
    return right


def orthonormalise_all(left: Tensor, matrices: Sequence[Matrix], rank: int) -> None:
    """Make the columns of each left factor orthonormal, in place."""
    unused = left.new_empty(right_numel(matrices, rank))
    for _, left_NR, _ in _pairs(left, unused, matrices, rank):
        orthonormalise(left_NR)


def orthonormalise(factor_NR: Tensor) -> None:
    """In place; zero columns become unit vectors, so that a matrix may come back from zero."""
    factor_NR.copy_(torch.linalg.qr(factor_NR).Q)


def product(
    left: Tensor, right: Tensor, matrices: Sequence[Matrix], rank: int, *, out: Tensor
) -> None:
    """Write each product of left and transposed right factor to its place in `out`."""
    for matrix, left_NR, right_MR in _pairs(left, right, matrices, rank):
        torch.mm(left_NR, right_MR.T, out=out[matrix.start : matrix.end].view(matrix.rows, -1))


def subtract_product(
    x: Tensor,
    left: Tensor,
    right: Tensor,
    matrices: Sequence[Matrix],
    rank: int,
    *,
    out: Tensor,
) -> None:
    """Write each matrix of `x` minus its product to its place in `out`."""
    for matrix, left_NR, right_MR in _pairs(left, right, matrices, rank):
        place = slice(matrix.start, matrix.end)
        x_NM, out_NM = x[place].view(matrix.rows, -1), out[place].view(matrix.rows, -1)
        torch.addmm(x_NM, left_NR, right_MR.T, alpha=-1, out=out_NM)


def local_factors(x: Tensor, slot: Slot, step: Step, rank: int) -> tuple[Tensor, Tensor]:
    """Factors of this rank's own matrices; the right ones are where the next step begins."""
    matrices = step.geometry.matrices
    right = slot.values.get("local_factors")
    if right is None or right.numel() != right_numel(matrices, rank):
        right = first_right(step, x, rank)
    left = multiply(x, right.clone(), matrices, rank)
    orthonormalise_all(left, matrices, rank)
    right = multiply_transposed(x, left, matrices, rank)
    slot.keep("local_factors", right)
    return left, right


def _pairs(
    left: Tensor, right: Tensor, matrices: Sequence[Matrix], rank: int
) -> Iterator[tuple[Matrix, Tensor, Tensor]]:
    """Each matrix with views of its factors."""
    left_end = right_end = 0
    for matrix in matrices:
        left_start, left_end = left_end, left_end + matrix.rows * rank
        right_start, right_end = right_end, right_end + matrix.cols * rank
        yield (
            matrix,
            left[left_start:left_end].view(rank, -1).T,
            right[right_start:right_end].view(rank, -1).T,
        )
