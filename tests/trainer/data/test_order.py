import itertools

import numpy as np
import pytest

from trainer.data.order import Subject, block_order, permutation

CASES = list(itertools.product([0, 7], [0, 1], Subject, [0, 3]))


def order(count, case):
    seed, epoch, subject, number = case
    return permutation(count, seed=seed, epoch=epoch, subject=subject, number=number)


@pytest.mark.parametrize("count", [0, 1, 2, 17, 1000])
def test_every_order_is_a_permutation(count):
    for case in CASES:
        assert sorted(order(count, case).tolist()) == list(range(count))


def test_other_seeds_epochs_subjects_and_numbers_give_other_orders():
    orders = {tuple(order(30, case).tolist()) for case in CASES}
    assert len(orders) == len(CASES)


def test_the_same_arguments_give_the_same_order_on_any_machine():
    assert block_order(8, seed=1, epoch=2).tolist() == EXPECTED
    assert block_order(8, seed=1 + 2**64, epoch=2).tolist() == EXPECTED


def test_negative_seeds_are_seeds():
    assert len(block_order(5, seed=-1, epoch=0)) == 5
    assert not np.array_equal(block_order(50, seed=-1, epoch=0), block_order(50, seed=1, epoch=0))


def test_places_are_evenly_spread():
    count, epochs = 10, 4000
    first = [block_order(count, seed=3, epoch=e)[0] for e in range(epochs)]
    share = np.bincount(first, minlength=count) / epochs
    # Five standard deviations of a fair draw.
    assert np.abs(share - 1 / count).max() < 5 * np.sqrt(0.09 / epochs)


EXPECTED = [7, 5, 4, 0, 3, 6, 1, 2]
