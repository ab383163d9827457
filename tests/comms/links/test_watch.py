"""The guarantees of comms/links/watch.py, one by one."""

import random

import pytest

from comms.links.map import LinkMap, map_of
from comms.links.order import ring_bytes_per_s
from comms.links.watch import Patience, first_topology, reconsider


def _even(places: int) -> LinkMap:
    return map_of([[1e-5] * places] * places, [[1e9] * places] * places)


def _slowed(links: LinkMap, link: tuple[int, int], factor: float) -> LinkMap:
    rates = [list(row) for row in links.bytes_per_s]
    rates[link[0]][link[1]] /= factor
    return map_of(links.latency_s, rates)


def test_noise_and_a_single_slow_message_change_nothing():
    links = _even(5)
    first = now = first_topology(links)
    draw = random.Random(1)
    for look in range(60):
        for a, b in links.links():
            seconds = links.seconds((a, b), 10**6) * draw.uniform(0.95, 1.05)
            links = links.observe((a, b), 10**6, seconds)
        if look == 30:
            links = links.observe((0, 1), 10**6, 1.0)
        now = reconsider(now, links, Patience(patience=60))
        assert (now.ring, now.groups) == (first.ring, first.groups)


def test_ranks_keep_their_order_unless_another_is_faster_by_enough():
    for factor, kept in ((1.2, True), (1.4, False)):
        links = _even(4)
        for edge in ((0, 1), (1, 0)):
            links = _slowed(links, edge, factor)
        assert (first_topology(links).ring == (0, 1, 2, 3)) == kept
    assert first_topology(_even(1)).ring == (0,)


def test_a_link_that_stays_slow_changes_the_ring_once_after_the_patience():
    links = _even(5)
    now = first_topology(links)
    edge = (now.ring[0], now.ring[1])
    slow = _slowed(links, edge, 10)
    seen = []
    for _ in range(8):
        now = reconsider(now, slow, Patience(patience=3))
        seen.append(now.ring)
    rates = [ring_bytes_per_s(slow, ring) for ring in seen]
    assert rates == pytest.approx([1e8] * 2 + [1e9] * 6)
    assert len(set(seen)) == 2
    assert now.doubts == 0


def test_doubts_that_do_not_follow_each_other_do_not_add_up():
    links = _even(4)
    first = now = first_topology(links)
    slow = _slowed(links, (now.ring[0], now.ring[1]), 10)
    for _ in range(5):
        now = reconsider(
            reconsider(reconsider(now, slow, Patience()), slow, Patience()), links, Patience()
        )
    assert now == first


def test_groups_change_with_the_same_patience():
    now = first_topology(_even(4))
    assert now.groups == ((0, 1, 2, 3),)
    rates = [[1e9 if a // 2 == b // 2 else 1e7 for b in range(4)] for a in range(4)]
    apart = map_of([[0.0] * 4] * 4, rates)
    now = reconsider(reconsider(now, apart, Patience()), apart, Patience())
    assert now.groups == ((0, 1, 2, 3),)
    assert reconsider(now, apart, Patience()).groups == ((0, 1), (2, 3))


def test_rules_that_would_never_or_always_change_are_refused():
    for rules in ({"least_gain": 1.0}, {"patience": 0}):
        with pytest.raises(ValueError, match="usual"):
            Patience(**rules)
