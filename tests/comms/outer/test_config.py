"""What comms/outer/config.py refuses."""

import pytest

from comms.outer.config import DilocoConfig


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"every": 0}, "at least 1"),
        ({"overlap_steps": -1}, "not be negative"),
        ({"mixing": 1.0}, "0.5 is usual"),
        ({"outer_momentum": 1.0}, r"\[0, 1\)"),
        ({"outer_lr": 0.0}, "above 0"),
        ({"wire": "fp16"}, "Choose one of"),
        ({"layout": "other"}, "Choose one of"),
        ({"weight": float("nan")}, "finite"),
    ],
)
def test_bad_values_are_refused_with_the_rule(change, words):
    with pytest.raises(ValueError, match=words) as error:
        DilocoConfig(**change)
    assert f"{next(iter(change))}={next(iter(change.values()))}" in str(error.value)


def test_the_defaults_are_valid():
    assert DilocoConfig().outer_momentum == 0.9
