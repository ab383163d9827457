"""Widths divide each other, grids are permutations, pieces partition."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parallel.hierarchy.widths import Widths, nested_piece, rank_grid


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        (dict(weights=2, gradients=3, optimizer=6), r"weights=2 .* gradients=3.*from \[1, 3\]"),
        (dict(weights=1, gradients=4, optimizer=6), r"gradients=4 .*from \[1, 2, 3, 6\]"),
        (dict(weights=4, gradients=2, optimizer=8), r"weights=4 does not divide gradients=2"),
        (dict(weights=0, gradients=2, optimizer=8), r"weights=0 must be a positive"),
        (dict(weights=1, gradients=1, optimizer=0), r"optimizer=0 must be a positive"),
    ],
)
def test_widths_that_do_not_nest_are_refused_with_those_that_do(widths, message):
    with pytest.raises(ValueError, match=message):
        Widths(**widths)


def test_the_widest_must_divide_the_ranks():
    with pytest.raises(ValueError, match=r"optimizer=4 .* data ranks=6.*from \[1, 2, 3, 6\]"):
        Widths(weights=2, gradients=4, optimizer=4).axis_sizes(6)


def test_every_rank_has_one_place_and_neighbours_are_innermost():
    grid = torch.tensor(rank_grid(Widths(weights=2, gradients=4, optimizer=8), range(16)))
    assert grid.shape == (2, 2, 2, 2)
    assert sorted(grid.flatten().tolist()) == list(range(16))
    assert grid[0, :, 0, 0].tolist() == [0, 1]
    assert grid[0, 0, :, 0].tolist() == [0, 2]
    assert grid[0, 0, 0, :].tolist() == [0, 4]
    assert grid[:, 0, 0, 0].tolist() == [0, 8]


@given(
    rows=st.integers(0, 40),
    cuts=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)),
)
def test_nested_pieces_partition_the_rows_as_torch_cuts_them(rows, cuts):
    found = []
    whole = torch.arange(rows)
    for a in range(cuts[0]):
        for b in range(cuts[1]):
            for c in range(cuts[2]):
                start, length = nested_piece(rows, cuts, (a, b, c))
                part = whole
                for parts, index in zip(cuts, (a, b, c), strict=True):
                    chunks = part.chunk(parts) if len(part) else ()
                    part = chunks[index] if index < len(chunks) else whole[:0]
                assert whole[start : start + length].tolist() == part.tolist()
                found += part.tolist()
    assert found == list(range(rows))
