"""The guarantees of comms/links/order.py, one by one, on random maps."""

import random
import time
from itertools import permutations

import pytest

from comms.links.map import LinkMap, map_of
from comms.links.order import groups, pairings, ring_bytes_per_s, ring_cost, ring_order


def _random(places: int, seed: int) -> LinkMap:
    draw = random.Random(seed)
    rates = [[10 ** draw.uniform(6, 10) for _ in range(places)] for _ in range(places)]
    return map_of([[1e-4] * places] * places, rates)


def _of_hosts(sizes: list[int], inside: float, between: float, shuffle: int = 0) -> LinkMap:
    host = [n for n, size in enumerate(sizes) for _ in range(size)]
    random.Random(shuffle).shuffle(host)
    rates = [[inside if a == b else between for b in host] for a in host]
    return map_of([[0.0] * len(host)] * len(host), rates)


@pytest.mark.parametrize("seed", range(5))
def test_small_rings_are_the_best_there_are(seed):
    links = _random(6, seed)
    orders = [(0, *rest) for rest in permutations(range(1, 6))]
    assert ring_cost(links, ring_order(links)) == min(ring_cost(links, o) for o in orders)


@pytest.mark.parametrize("places", [1, 2, 3, 12, 24])
def test_rings_hold_all_places_and_are_never_worse_than_the_order_of_ranks(places):
    links = _random(places, places)
    order = ring_order(links)
    assert order[0] == 0
    assert sorted(order) == list(range(places))
    assert ring_cost(links, order) <= ring_cost(links, tuple(range(places)))


@pytest.mark.parametrize("sizes", [[4, 4], [8, 8], [6, 5, 5]])
def test_a_ring_crosses_between_hosts_as_seldom_as_possible(sizes):
    links = _of_hosts(sizes, 1e10, 1e8)
    crossings = len(sizes)
    _, total = ring_cost(links, ring_order(links))
    assert total == pytest.approx((sum(sizes) - crossings) / 1e10 + crossings / 1e8)


def test_a_large_ring_avoids_slow_links_and_is_found_in_no_time():
    places = 64
    slow = {(a, a + 1) for a in range(0, places, 2)}
    rates = [[1e6 if (a, b) in slow else 1e9 for b in range(places)] for a in range(places)]
    links = map_of([[0.0] * places] * places, rates)
    begin_s = time.process_time()
    assert ring_bytes_per_s(links, ring_order(links)) == pytest.approx(1e9)
    assert time.process_time() - begin_s < 5


@pytest.mark.parametrize("places", [2, 3, 5, 6])
def test_small_pairings_have_the_fastest_slowest_pair(places):
    links = _random(places, 10 + places)

    def slowest(order: tuple[int, ...]) -> float:
        return min(links.both_ways(order[n], order[n + 1]) for n in range(0, places - 1, 2))

    pairs = pairings(links)
    assert len({place for pair in pairs for place in pair}) == places - places % 2
    found = min(links.both_ways(a, b) for a, b in pairs)
    assert found == max(map(slowest, permutations(range(places))))


def test_large_pairings_leave_out_at_most_one_place_and_avoid_slow_links():
    for places in (12, 13):
        rates = [[1e6 if abs(a - b) == 1 else 1e9 for b in range(places)] for a in range(places)]
        links = map_of([[0.0] * places] * places, rates)
        pairs = pairings(links)
        assert len({place for pair in pairs for place in pair}) == places - places % 2
        assert min(links.both_ways(a, b) for a, b in pairs) == 1e9


def test_groups_are_the_hosts_behind_slow_links():
    links = _of_hosts([3, 3, 2], 1e10, 1e8, shuffle=4)
    found = groups(links)
    assert sorted(map(len, found)) == [2, 3, 3]
    for group in found:
        assert all(links.both_ways(a, b) == 1e10 for a in group for b in group if a != b)
    assert groups(_of_hosts([3, 3], 1e10, 6e9)) == (tuple(range(6)),)
    assert groups(_of_hosts([3, 3], 1e10, 6e9), least_ratio=1.5) != (tuple(range(6)),)
    assert groups(_random(1, 0)) == ((0,),)


def test_groups_are_as_coarse_as_possible():
    rates = [[1e6] * 8 for _ in range(8)]
    for a in range(8):
        for b in range(8):
            if a // 4 == b // 4:
                rates[a][b] = 1e9 if a // 2 == b // 2 else 1e8
    assert groups(map_of([[0.0] * 8] * 8, rates)) == ((0, 1, 2, 3), (4, 5, 6, 7))


def test_a_ratio_that_separates_nothing_is_refused():
    with pytest.raises(ValueError, match="above 1"):
        groups(_random(3, 0), least_ratio=1.0)
