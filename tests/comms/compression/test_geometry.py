"""Small tensors and vectors stay dense, and low-rank methods see matrices."""

import pytest

from comms.compression.config import CompressionConfig
from comms.compression.geometry import Matrix, cut

SPARSE = CompressionConfig(method="econtrol", dense_below=100)
LOW_RANK = CompressionConfig(method="powersgd", dense_below=100, rank=4)


def test_vectors_and_small_tensors_stay_dense():
    geometry = cut(1000 + 300 + 20 + 5000, [(1000,), (10, 30), (4, 5), (50, 10, 10)], SPARSE)
    assert geometry.dense == ((0, 1000), (1300, 1320))
    assert geometry.matrices == (Matrix(1000, 10, 30), Matrix(1320, 50, 100))
    assert geometry.dense_numel + geometry.compressed_numel == geometry.numel == 6320


def test_neighbours_travel_as_one_run():
    geometry = cut(30 + 50 + 10_000, [(30,), (50,), (100, 100)], SPARSE)
    assert geometry.dense == ((0, 80),)


def test_matrices_that_would_not_halve_stay_dense_for_low_rank_only():
    shapes = [(10, 30), (100, 100)]
    assert len(cut(10_300, shapes, SPARSE).matrices) == 2
    assert cut(10_300, shapes, LOW_RANK).matrices == (Matrix(300, 100, 100),)


def test_a_stack_of_matrices_is_cut_where_that_has_the_smaller_factors():
    experts, kernels = (3, 40, 50), (60, 50, 3)
    numel = 6000 + 9000
    assert cut(numel, [experts, kernels], LOW_RANK).matrices == (
        *(Matrix(2000 * n, 40, 50) for n in range(3)),
        Matrix(6000, 60, 150),
    )
    assert cut(numel, [experts, kernels], SPARSE).matrices == (
        Matrix(0, 3, 2000),
        Matrix(6000, 60, 150),
    )


def test_without_shapes_the_whole_is_one_matrix():
    assert cut(10_001, None, SPARSE).compressed_numel == 10_001
    geometry = cut(10_101, None, LOW_RANK)
    assert geometry.matrices == (Matrix(0, 101, 100),)
    assert geometry.dense == ((10_100, 10_101),)
    assert cut(99, None, SPARSE).matrices == ()


def test_shapes_must_add_up():
    with pytest.raises(ValueError, match="300 entries and the gradient 301"):
        cut(301, [(10, 30)], SPARSE)
