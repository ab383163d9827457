import numpy as np
import pytest

from trainer.rl.engine.randomness import uniforms


def test_a_number_depends_on_seed_and_index_alone():
    seeds, indexes = np.array([3, 7, 3, 2**63 - 1]), np.array([0, 5, 0, 9])
    together = uniforms(seeds, indexes)
    alone = [uniforms(seeds[i : i + 1], indexes[i : i + 1])[0] for i in range(4)]
    assert together.tolist() == alone
    assert together[0] == together[2] != together[1]


def test_the_numbers_are_the_same_everywhere():
    found = uniforms(np.array([0, 1, 12345]), np.array([0, 2, 678]))
    # From the same arithmetic in unbounded integers.
    expected = [0.281761297722585, 0.943564230864854, 0.015809936860808]
    assert found.tolist() == pytest.approx(expected, abs=1e-15)


def test_numbers_are_uniform_and_uncorrelated_along_seeds_and_indexes():
    count = 40_000
    places = np.arange(count)
    for seeds, indexes in ((np.full(count, 42), places), (places, np.full(count, 42))):
        numbers = uniforms(seeds, indexes)
        counts, _ = np.histogram(numbers, bins=50, range=(0.0, 1.0))
        expected = count / 50
        chi_square = ((counts - expected) ** 2 / expected).sum()
        # 49 degrees of freedom: mean 49, standard deviation 10.
        assert 15 < chi_square < 100
        assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.02
