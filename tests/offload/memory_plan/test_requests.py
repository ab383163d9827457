import pytest

from offload.memory_plan.requests import (
    Placement,
    Request,
    aligned,
    find_overlap,
    lower_bound_bytes,
    peak_bytes,
)


def request(name, size, begin, end):
    return Request(name=name, size_bytes=size, begin=begin, end=end)


THREE = [request("a", 10, 0, 2), request("b", 20, 1, 3), request("c", 5, 2, 4)]


def test_the_lower_bound_is_the_most_that_is_alive():
    assert lower_bound_bytes(THREE) == 30
    assert lower_bound_bytes([]) == 0


def test_only_requests_alive_together_may_not_share():
    assert find_overlap(THREE, {"a": 0, "b": 10, "c": 0}) is None
    assert find_overlap(THREE, {"a": 0, "b": 9, "c": 0}) == "a at 0 and b at 9 are alive together"
    assert peak_bytes(THREE, {"a": 0, "b": 10, "c": 0}) == 30


def test_sizes_are_rounded_and_empty_ones_dropped():
    assert [r.size_bytes for r in aligned([*THREE, request("d", 0, 0, 1)], 16)] == [16, 32, 16]


def test_fragmentation_is_what_the_bound_leaves_open():
    placed = Placement(addresses={}, peak_bytes=40, lower_bound_bytes=30, optimal=False)
    assert placed.fragmentation == pytest.approx(0.25)


def test_impossible_requests_are_refused():
    with pytest.raises(ValueError, match="ends come after begins"):
        request("a", 1, 2, 2)
