"""The guarantees of cluster/watchdog/matrix.py."""

from itertools import permutations

import pytest

from cluster.watchdog.matrix import locate, normalised


def matrix(*, slow=(), size=4):
    """Delays of 1 ms, and of 10 ms in the cells `slow`."""
    return {cell: 10e-3 if cell in slow else 1e-3 for cell in permutations(range(size), 2)}


def located(delays):
    return locate(normalised(delays), ratio=3.0)


def test_an_even_matrix_names_nothing():
    assert located(matrix()) is None
    assert locate({}, ratio=3.0) is None


@pytest.mark.parametrize("slow", [{(1, 2)}, {(1, 2), (2, 1)}])
def test_one_high_cell_is_a_connection(slow):
    found = located(matrix(slow=slow))
    assert found is not None
    assert (found.shape, {found.first, found.second}) == ("cell", {1, 2})
    assert found.ratio == pytest.approx(10.0)


def test_a_high_row_is_a_sender():
    found = located(matrix(slow={(2, other) for other in (0, 1, 3)}))
    assert found is not None
    assert (found.shape, found.first) == ("row", 2)


def test_a_high_column_is_a_receiver():
    found = located(matrix(slow={(other, 3) for other in (0, 1, 2)}))
    assert found is not None
    assert (found.shape, found.first) == ("column", 3)


def test_a_high_row_and_column_are_one_end():
    slow = {cell for cell in permutations(range(4), 2) if 1 in cell}
    found = locate({cell: 10.0 if cell in slow else 1.0 for cell in matrix()}, ratio=3.0)
    assert found is not None
    assert (found.shape, found.first) == ("cross", 1)


def test_where_everything_is_high_nothing_is_named():
    found = locate(dict.fromkeys(matrix(), 10.0), ratio=3.0)
    assert found is not None
    assert (found.shape, found.first) == ("everywhere", None)
