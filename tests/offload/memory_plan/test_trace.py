import torch

from offload.memory_plan.caching import simulate_caching
from offload.memory_plan.program import plan_addresses
from offload.memory_plan.requests import find_overlap, lower_bound_bytes
from offload.memory_plan.trace import MemoryTrace
from tests.offload.activations.small import make_blocks


def test_lifetimes_are_those_of_the_storages():
    x = torch.ones(256)
    with MemoryTrace() as trace:
        y = x * 2.0
        z = y.view(16, 16).exp()
        del y
        total = z.sum()
    lives = [(r.size_bytes, r.begin, r.end) for r in trace.requests()]
    # y: made first, gone once its exponential was there; z and the sum live on.
    assert lives == [(1024, 0, 3), (1024, 2, 4), (4, 3, 4)]
    assert total > 0


def test_writes_in_place_and_views_are_no_new_storage():
    with MemoryTrace() as trace:
        x = torch.zeros(64)
        x.add_(1.0)[3:].mul_(2.0)
    assert [r.size_bytes for r in trace.requests()] == [256]


def test_a_blocks_forward_and_backward_are_planned():
    block, x = make_blocks(1)[0], torch.randn(64, 48, requires_grad=True)
    trace = MemoryTrace()
    with trace:
        loss = block.parts().plain(x).sum()
    half = trace.now
    with trace:
        loss.backward()
    requests = trace.requests()
    assert any(r.begin < half < r.end for r in requests), "something is saved for backward"
    placed = plan_addresses(requests, time_limit_s=3.0)
    assert find_overlap(requests, placed.addresses) is None
    assert placed.peak_bytes <= sum(r.size_bytes + 511 for r in requests)
    assert placed.fragmentation < 0.1
    assert lower_bound_bytes(requests) <= placed.peak_bytes
    assert simulate_caching(requests).reserved_bytes >= lower_bound_bytes(requests)
