import random

import pytest

from offload.memory_plan.greedy import place_greedily
from offload.memory_plan.program import plan_addresses
from offload.memory_plan.requests import Request, aligned, find_overlap, peak_bytes


def drawn(seed, count=12):
    generator = random.Random(seed)
    found = []
    for number in range(count):
        begin = generator.randrange(12)
        found.append(
            Request(
                name=str(number),
                size_bytes=generator.choice([0, 300, 512, 1024, 1536, 4096, 10240]),
                begin=begin,
                end=begin + generator.randint(1, 6),
            )
        )
    return found


@pytest.mark.parametrize("seed", range(12))
def test_placements_are_valid_and_never_worse_than_greedy(seed):
    requests = drawn(seed)
    placed = plan_addresses(requests, time_limit_s=1.0)
    rounded = aligned(requests, 512)
    assert find_overlap(rounded, placed.addresses) is None
    assert set(placed.addresses) == {r.name for r in requests}
    assert placed.peak_bytes == peak_bytes(rounded, placed.addresses)
    greedy = place_greedily(rounded)
    assert find_overlap(rounded, greedy) is None
    assert placed.lower_bound_bytes <= placed.peak_bytes <= peak_bytes(rounded, greedy)
    assert placed.peak_bytes > placed.lower_bound_bytes or placed.optimal


# Sizes, begins and ends for which first fit, in any of its orders, leaves a hole.
HOLES = [
    [(3, 1, 2), (2, 4, 6), (1, 5, 9), (5, 7, 10), (2, 7, 10), (5, 4, 5), (2, 7, 11), (3, 3, 6)],
    [(6, 5, 8), (3, 7, 8), (3, 7, 8), (3, 2, 5), (3, 5, 8), (5, 4, 7), (3, 4, 5), (5, 4, 5)],
]


@pytest.mark.parametrize("lives", HOLES)
def test_the_program_beats_the_rules_where_they_leave_holes(lives):
    requests = [
        Request(name=str(i), size_bytes=512 * size, begin=begin, end=end)
        for i, (size, begin, end) in enumerate(lives)
    ]
    placed = plan_addresses(requests, time_limit_s=100.0)
    assert placed.optimal
    assert find_overlap(requests, placed.addresses) is None
    assert placed.peak_bytes < peak_bytes(requests, place_greedily(requests))


def test_no_requests_need_no_memory():
    placed = plan_addresses([])
    assert (placed.peak_bytes, placed.optimal, placed.fragmentation) == (0, True, 0.0)


def test_two_requests_of_one_name_are_refused():
    with pytest.raises(ValueError, match="need as many names"):
        plan_addresses([Request(name="a", size_bytes=1, begin=0, end=1)] * 2)
