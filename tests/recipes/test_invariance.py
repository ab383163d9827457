"""What a comparison of losses concludes, and how it refuses."""

import math

import pytest

from recipes.invariance import Variant, compare, largest_difference
from tests.jobs import tiny_job
from trainer.data.config import DataConfig
from trainer.errors import DataError, RecipeError

ALONE = Variant(replica=1, shard=1, rounds=1)


def test_a_loss_that_is_not_finite_agrees_with_nothing():
    assert largest_difference((2.0, 1.9), (2.0, 1.9)) == 0.0
    assert largest_difference((2.0, 1.0), (2.0, 2.0)) == 0.5
    assert largest_difference((2.0, math.nan, 1.0), (2.0, 1.9, 1.8)) == math.inf
    assert largest_difference((2.0, 1.9), (2.0, math.nan)) == math.inf


def test_more_steps_than_the_recipe_has_are_refused(tmp_path):
    for steps in (0, 7):
        with pytest.raises(RecipeError, match=r"must lie between 1 and train\.steps=6"):
            compare(tiny_job(tmp_path), [ALONE], steps=steps)


def test_what_a_rank_raises_is_raised_here(tmp_path):
    job = tiny_job(tmp_path, data=DataConfig(source=str(tmp_path / "none"), seq_len=48))
    with pytest.raises(DataError, match="none"):
        compare(job, [ALONE], steps=1)
