import pytest

from offload.memory_plan.requests import Request, find_overlap, lower_bound_bytes
from offload.memory_plan.two_level import BlockRun, plan_iteration

KIB = 1024


def request(name, kib, begin, end):
    return Request(name=name, size_bytes=kib * KIB, begin=begin, end=end)


KINDS = {
    "forward": [request("norm", 4, 0, 2), request("gate", 12, 1, 4), request("up", 12, 2, 4)],
    "backward": [request("d_up", 12, 0, 3), request("d_gate", 12, 1, 3), request("d_x", 4, 2, 5)],
}


def runs(blocks):
    forward = [
        BlockRun(name=f"f{i}", kind="forward", begin=4 * i, duration=4) for i in range(blocks)
    ]
    backward = [
        BlockRun(name=f"b{i}", kind="backward", begin=4 * blocks + 5 * i, duration=5)
        for i in range(blocks)
    ]
    return forward + backward


def outside(blocks):
    end = 9 * blocks
    return [request("embedding", 8, 0, end), request("logits", 20, 4 * blocks - 1, 4 * blocks + 1)]


def test_the_iteration_is_valid_and_as_tight_as_its_blocks():
    plan = plan_iteration(KINDS, runs(3), outside(3))
    assert find_overlap(plan.flat, plan.addresses) is None
    assert plan.lower_bound_bytes == lower_bound_bytes(plan.flat)
    assert plan.lower_bound_bytes <= plan.peak_bytes
    assert plan.fragmentation < 0.2
    assert plan.caching.reserved_bytes >= plan.peak_bytes


def test_identical_blocks_get_the_same_addresses():
    plan = plan_iteration(KINDS, runs(4), outside(4))
    for number in range(4):
        for name, inside in plan.kinds["forward"].addresses.items():
            at = plan.addresses[f"f{number}/{name}"]
            assert at - plan.outer.addresses[f"f{number}"] == inside
    assert set(plan.kinds) == {"forward", "backward"}


def test_a_tensor_that_outlives_its_block_is_refused():
    with pytest.raises(ValueError, match="gate lives from 1 to 4, its run f0 takes 3"):
        plan_iteration(KINDS, [BlockRun(name="f0", kind="forward", begin=0, duration=3)], [])
    with pytest.raises(ValueError, match="is of kind other; known are"):
        plan_iteration(KINDS, [BlockRun(name="f0", kind="other", begin=0, duration=9)], [])
