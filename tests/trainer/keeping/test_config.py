"""What the section `keep` may say."""

import pytest

from trainer.keeping.config import KeepingConfig


def test_every_step_unless_said_otherwise():
    assert KeepingConfig().every_steps == 1
    assert KeepingConfig(interval_steps=5).every_steps == 5
    assert KeepingConfig(interval_steps=0).every_steps == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"interval_steps": -1}, "keep.interval_steps must not be negative, got -1"),
        ({"slots": 1}, "keep.slots must be at least 2, got 1"),
        ({"dir": "shm"}, "keep.dir='shm' is relative"),
    ],
)
def test_what_cannot_be_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        KeepingConfig(**values)
