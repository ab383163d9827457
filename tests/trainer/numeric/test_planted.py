"""What a drill plants, and what is seen of it."""

import math

import pytest
import torch

from trainer.errors import RecipeError
from trainer.numeric.planted import Planted, read_planted, write_planted
from trainer.numeric.watch import GradientWatch


def test_a_planted_gradient_is_wrong_in_one_step_of_one_rank(tmp_path):
    path = tmp_path / "planted.json"
    assert read_planted(path).at(0, 0) == 1.0
    write_planted(path, Planted(step=5, rank=1, factor="nan"))
    planted = read_planted(path)
    assert math.isnan(planted.at(5, 1))
    assert [planted.at(5, 0), planted.at(4, 1)] == [1.0, 1.0]
    for text in ('{"step": 5}', "nan", '{"step": 5, "rank": 1, "factor": "x"}'):
        path.write_text(text)
        with pytest.raises(RecipeError, match="plants no fault"):
            read_planted(path)


def test_the_watch_sees_a_gradient_that_is_not_finite_once():
    watch = GradientWatch()
    assert not watch.take()
    for factor, bad in ((1.0, False), (math.nan, True), (math.inf, True), (1.0, False)):
        x = torch.ones(3, 2, requires_grad=True)
        hidden = x * 2.0
        hidden.register_hook(watch)
        (hidden.sum() * factor).backward()
        assert watch.take() is bad
