"""What objectives take from their source, and which choices are refused."""

import pytest

from trainer.rl.objectives.config import PUBLISHED, ObjectiveConfig


def test_open_choices_are_those_of_the_source():
    dapo = ObjectiveConfig(kind="dapo").resolved()
    assert (dapo.normalisation, dapo.clip_low, dapo.clip_high) == ("token", 0.2, 0.28)
    assert ObjectiveConfig(kind="dr_grpo").resolved().advantage == "centred"


@pytest.mark.parametrize("kind", PUBLISHED)
def test_the_recipe_wins_over_the_source(kind):
    config = ObjectiveConfig(kind=kind, clip_low=0.11, clip_high=0.12, normalisation="constant")
    found = config.resolved()
    assert (found.clip_low, found.clip_high, found.normalisation) == (0.11, 0.12, "constant")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"clip_low": 1.5}, "set 1 to clip nothing below"),
        ({"clip_high": 0.0}, "must be positive"),
        ({"beta": float("nan")}, "must be positive"),
        ({"dual_clip": 0.9}, "must be above 1"),
        ({"kl_coefficient": -1.0}, "must not be negative"),
        ({"entropy_scale": 2.0}, "turns advantages round"),
    ],
)
def test_impossible_choices_are_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        ObjectiveConfig(**wrong)
