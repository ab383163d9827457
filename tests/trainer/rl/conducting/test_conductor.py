"""The guarantees of trainer/rl/conducting/conductor.py."""

import json

import pytest

from tests.trainer.rl.conducting.simulation import World, is_useful
from trainer.errors import DataError

SEEDS = range(12)


def useful(count):
    found, number = [], 0
    while len(found) < count:
        if is_useful(number):
            found.append(number)
        number += 1
    return found


@pytest.mark.parametrize("staleness", [0, 1, 3])
@pytest.mark.parametrize("seed", SEEDS)
def test_each_prompt_is_trained_once_whatever_is_lost_when(staleness, seed):
    world = World(seed, losses=0.01, max_staleness=staleness).run()
    numbers = [number for groups in world.trained for number in groups]
    assert len(numbers) == len(set(numbers)) == 18
    assert all(map(is_useful, numbers))
    if staleness == 0:
        assert world.trained == [tuple(useful(18)[3 * i : 3 * i + 3]) for i in range(6)]
    else:
        assert set(useful(9)) <= set(numbers), "none is passed over"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_staleness_of_zero_trains_in_order_whatever_finishes_when(seed):
    world = World(seed, max_staleness=0).run()
    assert world.trained == [tuple(useful(18)[3 * i : 3 * i + 3]) for i in range(6)]
