import torch

from offload.activations.blocks import BlockSwap
from offload.activations.policy import ActivationPolicy
from offload.activations.records import SwapOptions
from offload.activations.rounding import RoundingBuffers
from tests.offload.activations.small import MIB, forward, make_blocks, open_swap

ONE_AT_A_TIME, AHEAD = 1, 64 * MIB


def run(folder, buffers, alpha, *, prefetch_bytes, steps=3):
    """Bytes that returned to the buffers, and past them, in each step."""
    blocks, x = make_blocks(5), torch.randn(160, 48)
    options = SwapOptions(min_bytes=1, prefetch_bytes=prefetch_bytes, max_in_flight_bytes=1)
    moved = []
    with open_swap("disk", folder, options, targets=buffers) as swap:
        policy = ActivationPolicy(kind="swap", alpha=alpha, tier="disk", kept_blocks=1)
        runner = BlockSwap({"disk": swap}, num_blocks=5, policy=policy)
        for _ in range(steps):
            loss = forward(blocks, x, runner)
            swap.drain()
            before = buffers.leased_bytes, buffers.missed_bytes
            loss.backward()
            moved.append((buffers.leased_bytes - before[0], buffers.missed_bytes - before[1]))
            del loss
    return moved


def test_tensors_return_to_the_buffers_from_the_second_step_on(tmp_path):
    first, second, third = run(tmp_path, RoundingBuffers(), 0.4, prefetch_bytes=ONE_AT_A_TIME)
    assert second == third
    assert second[0] > first[0]
    assert second[1] == 0


def test_a_buffer_in_use_is_not_written(tmp_path):
    """A window of many blocks wants more than two buffers: the rest gets memory of its own."""
    buffers = RoundingBuffers()
    moved = run(tmp_path, buffers, 1.0, prefetch_bytes=AHEAD)
    assert moved[-1][0] > 0
    assert moved[-1][1] > 0


def test_forwards_of_several_batches_are_told_apart(tmp_path):
    """As in a pipeline: the second, shorter batch comes before the first one's backward."""
    buffers, blocks = RoundingBuffers(), make_blocks(3)
    options = SwapOptions(min_bytes=1, prefetch_bytes=ONE_AT_A_TIME, max_in_flight_bytes=1)
    batches = [torch.randn(160, 48), torch.randn(70, 48)]
    with open_swap("disk", tmp_path, options, targets=buffers) as swap:
        policy = ActivationPolicy(kind="swap", alpha=0.4, tier="disk", kept_blocks=0)
        runner = BlockSwap({"disk": swap}, num_blocks=3, policy=policy)
        for _ in range(2):
            expected, found = [], []
            for run in (None, runner):
                losses = [forward(blocks, x, run) for x in batches]
                swap.drain()
                parameters = list(blocks.parameters())
                grads = [torch.autograd.grad(loss, parameters) for loss in losses]
                (expected if run is None else found).extend(g for gs in grads for g in gs)
                del losses
            assert all(map(torch.equal, found, expected))
    # Two for each batch: the first block's input wants no gradient.
    assert len(buffers.plans) == 4
    assert buffers.leased_bytes > 0


def test_the_buffers_are_twice_the_plan(tmp_path):
    buffers = RoundingBuffers()
    run(tmp_path, buffers, 0.0, prefetch_bytes=AHEAD)
    largest = max(plan.peak_bytes for plan in buffers.plans.values())
    assert buffers.size_bytes == 2 * largest
    for plan in buffers.plans.values():
        assert plan.peak_bytes >= plan.lower_bound_bytes
