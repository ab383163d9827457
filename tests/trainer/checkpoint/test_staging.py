"""Staged bytes are a copy, in memory that is kept."""

import pytest
import torch

from tests.trainer.checkpoint.worlds import whole_state
from trainer.checkpoint.share import plan_share
from trainer.checkpoint.staging import StagingBuffer


def test_the_copy_does_not_follow_the_state() -> None:
    state = {"a": torch.arange(6.0).view(2, 3).t(), "b": torch.tensor(2.0, requires_grad=True)}
    share = plan_share(state, None)
    staged = StagingBuffer().stage(share, state)
    before = bytes(staged.payload)
    with torch.no_grad():
        state["a"].zero_()
    assert bytes(staged.payload) == before
    expected = torch.arange(6.0).view(2, 3).t().contiguous().numpy().tobytes()
    assert before == expected + torch.tensor(2.0).numpy().tobytes()


def test_memory_is_reused_until_the_share_changes() -> None:
    buffer = StagingBuffer()
    state = whole_state(0)
    share = plan_share(state, None)
    first = buffer.stage(share, state).payload
    second = buffer.stage(share, whole_state(1)).payload
    assert bytes(first) == bytes(second)
    smaller = {"a": torch.ones(2)}
    third = buffer.stage(plan_share(smaller, None), smaller).payload
    assert bytes(third) == torch.ones(2).numpy().tobytes()


def test_a_rank_may_have_nothing_to_write() -> None:
    state = {"none": torch.empty(0, 3)}
    assert len(StagingBuffer().stage(plan_share(state, None), state).payload) == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_device_state_is_copied_in_stream_order_to_pinned_memory() -> None:
    state = {name: tensor.cuda() for name, tensor in whole_state(0).items()}
    share = plan_share(state, None)
    staged = StagingBuffer().stage(share, state)
    for tensor in state.values():
        tensor.zero_()
    staged.wait_until_copied()
    expected = StagingBuffer().stage(share, whole_state(0))
    assert bytes(staged.payload) == bytes(expected.payload)
