"""How much of an update's time movement lengthened."""

import pytest

from trainer.movement import Movement


@pytest.mark.parametrize(
    ("update_s", "stall_s", "hidden"), [(2.0, 0.0, 1.0), (2.0, 0.5, 0.75), (0.0, 0.0, 1.0)]
)
def test_hidden_is_what_was_not_waited_for(update_s, stall_s, hidden):
    moved = Movement(moved_bytes={}, update_s=update_s, stall_s=stall_s, device_share=0.0)
    assert moved.hidden == hidden
