"""What a recipe may say about islands."""

import pytest

from comms.config import IslandConfig
from comms.outer.config import DilocoConfig
from comms.outer.schedule import OuterSchedule


def test_methods_are_limits_of_each_other():
    island = IslandConfig(every=20, outer_lr=0.5, overlap_steps=2, wire="int8")
    plain = {"every": 20, "overlap_steps": 0, "mixing": 0.0, "wire": "fp32"}
    assert island.diloco() == DilocoConfig(every=20, outer_lr=0.5, overlap_steps=2, wire="int8")
    assert IslandConfig(method="diloco", every=20).diloco() == DilocoConfig(**plain)
    alone = IslandConfig(method="local_sgd", every=20)
    assert alone.diloco() == DilocoConfig(**plain, outer_lr=1.0, outer_momentum=0.0)


def test_fragments_are_found_where_they_are_not_given():
    assert IslandConfig().schedule(blocks=12) == OuterSchedule(100, 5, 5)
    assert IslandConfig().schedule(blocks=4) == OuterSchedule(100, 5, 4)
    assert IslandConfig(fragments=2).schedule(blocks=12).fragments == 2
    assert IslandConfig(method="diloco").schedule(blocks=12).fragments == 1


def test_weights_are_shares_over_the_smallest():
    assert IslandConfig().weights(3) == (1.0, 1.0, 1.0)
    assert IslandConfig(shares=(0.1, 0.1, 0.1)).weights(3) == (1.0, 1.0, 1.0)
    shared = IslandConfig(shares=(6, 3, 4))
    assert shared.weights(3) == (2.0, 1.0, 4 / 3)
    assert shared.only((0, 2)).weights(2) == (1.5, 1.0)
    assert shared.only(()) == IslandConfig().only((0, 2)) == IslandConfig()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, r"comms.island.every=0 must be at least 1"),
        ({"every": 4}, r"comms.island.overlap_steps=5 must be below the 4 steps"),
        (
            {"every": 100, "fragments": 7},
            r"comms.island.every=100 is not divisible by 7 .*98 or 105",
        ),
        ({"fragments": 0}, "comms.island.fragments=0 must be a positive integer or auto"),
        ({"mixing": 1.0}, r"comms.island.mixing=1.0 must be in \[0, 1\)"),
        ({"outer_lr": 0.0}, "comms.island.outer_lr=0.0 must be above 0"),
        (
            {"shares": ()},
            r"comms.island.shares=\[\] must be positive .* such as \[2, 1\]; or equal",
        ),
        ({"shares": (2, 0)}, r"comms.island.shares=\[2, 0\] must be positive numbers"),
        ({"shares": (2, -1)}, r"comms.island.shares=\[2, -1\] must be positive numbers"),
        ({"shares": (1, float("inf"))}, r"comms.island.shares=\[1, inf\] must be positive"),
        ({"shares": (1, 2000)}, r"\[1, 2000\] differ by more than 1,000 times; .*parallel.island"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_key(options, message):
    with pytest.raises(ValueError, match=message):
        IslandConfig(**options)
