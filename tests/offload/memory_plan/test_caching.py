import pytest
import torch

from offload.memory_plan.caching import MIB, simulate_caching
from offload.memory_plan.requests import Request


def request(name, size, begin, end):
    return Request(name=name, size_bytes=size, begin=begin, end=end)


def test_small_requests_share_a_segment():
    found = simulate_caching([request(str(i), 1000, 0, 5) for i in range(4)])
    assert (found.reserved_bytes, found.allocated_bytes) == (2 * MIB, 4 * 1024)


def test_freed_blocks_are_used_again_and_neighbours_merged():
    # Two of 5 MiB leave a segment of 20; freed, they serve one of 9.
    found = simulate_caching(
        [
            request("a", 5 * MIB, 0, 1),
            request("b", 5 * MIB, 0, 1),
            request("c", 9 * MIB, 1, 2),
            request("d", 12 * MIB, 1, 2),
        ]
    )
    assert found.reserved_bytes == 20 * MIB + 12 * MIB
    assert found.allocated_bytes == 21 * MIB


def test_growing_sequences_fragment():
    """What training on ever longer sequences does: no old block fits the next size."""
    found = simulate_caching([request(str(i), (12 + 2 * i) * MIB, i, i + 1) for i in range(5)])
    assert found.reserved_bytes == sum(12 + 2 * i for i in range(5)) * MIB
    assert found.fragmentation == pytest.approx(1 - 20 / 80)


@pytest.mark.gpu
def test_it_agrees_with_the_real_allocator():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    sizes = [3 * MIB, 700_000, 12 * MIB, 5 * MIB, 900]
    held = [torch.empty(size, dtype=torch.uint8, device="cuda") for size in sizes]
    found = simulate_caching([request(str(i), size, 0, 1) for i, size in enumerate(sizes)])
    assert torch.cuda.memory_reserved() - before == found.reserved_bytes
    del held
