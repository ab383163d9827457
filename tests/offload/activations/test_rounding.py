import torch

from offload.activations.blocks import BlockSwap
from offload.activations.policy import ActivationPolicy
from offload.activations.records import SwapOptions
from offload.activations.rounding import RoundingBuffers
from tests.offload.activations.small import MIB, forward, make_blocks, open_swap

WIDE = SwapOptions(min_bytes=1, prefetch_bytes=64 * MIB, max_in_flight_bytes=1)


def run(folder, buffers, alpha, steps=3, kind="disk"):
    blocks, x = make_blocks(5), torch.randn(160, 48)
    moved = []
    with open_swap(kind, folder, WIDE, targets=buffers) as swap:
        policy = ActivationPolicy(kind="swap", alpha=alpha, tier=kind, kept_blocks=1)
        runner = BlockSwap({kind: swap}, num_blocks=5, policy=policy)
        for _ in range(steps):
            loss = forward(blocks, x, runner)
            swap.drain()
            before = buffers.leased_bytes, buffers.missed_bytes
            loss.backward()
            moved.append((buffers.leased_bytes - before[0], buffers.missed_bytes - before[1]))
            del loss
    return moved


def test_tensors_return_to_the_buffers_from_the_second_step_on(tmp_path):
    buffers = RoundingBuffers()
    run(tmp_path, buffers, 0.4, steps=1)
    assert buffers.plans
    narrow = RoundingBuffers()
    first, second, third = _narrow(tmp_path, narrow)
    assert second == third
    assert second[0] > 0
    assert second[1] == 0
    assert first[0] < second[0]


def _narrow(folder, buffers):
    """A window of one block and a bit: while one block is in backward, the next one returns."""
    blocks, x = make_blocks(5), torch.randn(160, 48)
    found = []
    options = SwapOptions(min_bytes=1, prefetch_bytes=1, max_in_flight_bytes=1)
    with open_swap("disk", folder, options, targets=buffers) as swap:
        policy = ActivationPolicy(kind="swap", alpha=0.4, tier="disk", kept_blocks=1)
        runner = BlockSwap({"disk": swap}, num_blocks=5, policy=policy)
        for _ in range(3):
            loss = forward(blocks, x, runner)
            swap.drain()
            before = buffers.leased_bytes, buffers.missed_bytes
            loss.backward()
            found.append((buffers.leased_bytes - before[0], buffers.missed_bytes - before[1]))
            del loss
    return found


def test_a_buffer_in_use_is_not_written(tmp_path):
    """A window of many blocks wants more than two buffers: the rest gets memory of its own."""
    buffers = RoundingBuffers()
    moved = run(tmp_path, buffers, 1.0)
    assert moved[-1][0] > 0
    assert moved[-1][1] > 0


def test_the_buffers_are_twice_the_plan(tmp_path):
    buffers = RoundingBuffers()
    run(tmp_path, buffers, 0.0)
    largest = max(plan.peak_bytes for plan in buffers.plans.values())
    assert buffers.size_bytes == 2 * largest
    for plan in buffers.plans.values():
        assert plan.peak_bytes >= plan.lower_bound_bytes
