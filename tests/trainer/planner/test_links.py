"""The guarantees of trainer/planner/links.py, one by one."""

import random
from dataclasses import replace

import pytest

from comms.links.map import LinkMap, map_of
from comms.links.order import ring_bytes_per_s
from tests.trainer.planner.planners import LENGTHS, fixed_planner
from trainer.planner.codec import decode_plan, encode_plan
from trainer.planner.links import (
    REST_STEPS,
    WARM_UP_STEPS,
    LinkedPlanner,
    LinkWatch,
    advice,
    part_of,
    ring_places,
)
from trainer.planner.plan import Terms


def _even(places: int) -> LinkMap:
    return map_of([[1e-5] * places] * places, [[1e9] * places] * places)


def _slowed(links: LinkMap, link: tuple[int, int]) -> LinkMap:
    rates = [list(row) for row in links.bytes_per_s]
    rates[link[0]][link[1]] /= 10
    return map_of(links.latency_s, rates)


def test_the_plan_is_the_planners_but_for_the_rings():
    planner, alone = LinkedPlanner(fixed_planner(), LinkWatch(_even(4))), fixed_planner()
    for step in range(1, 4):
        plan, wanted = planner.choose(step, LENGTHS), alone.choose(step, LENGTHS)
        assert plan == replace(wanted, ring_hosts=(0, 1, 2, 3), host_groups=())
        assert decode_plan(encode_plan(plan)) == plan
        for one in (planner, alone):
            one.observe(plan, Terms(compute_s=1.0, communication_s=0.5))
    assert planner.hardware == alone.hardware


def test_steps_that_stay_slow_ask_for_one_measurement_and_noise_for_none():
    predicted, chance = Terms(compute_s=1.0, communication_s=0.5), random.Random(3)
    watch = LinkWatch(_even(4))
    for _ in range(WARM_UP_STEPS):
        watch.observe(predicted, replace(predicted, communication_s=3.0))
    for step in range(200):
        measured = replace(predicted, communication_s=0.5 * chance.uniform(0.7, 1.29))
        if step % 7 == 0:
            measured = replace(predicted, communication_s=3.0)
        watch.observe(predicted, measured)
    for _ in range(9):
        # Slow, but too short to matter.
        watch.observe(
            replace(predicted, communication_s=1e-3), Terms(compute_s=1.0, communication_s=0.01)
        )
    assert not watch.wanted
    planner = LinkedPlanner(fixed_planner(), watch)
    slow = replace(predicted, communication_s=2.0)
    for _ in range(3):
        watch.observe(predicted, slow)
    plans = [planner.choose(step, LENGTHS) for step in (1, 2)]
    assert [plan.measure_links for plan in plans] == [True, False]
    watch.take(_even(4))
    for _ in range(REST_STEPS - 1):
        watch.observe(predicted, slow)
    assert not watch.wanted
    watch.observe(predicted, slow)
    assert watch.wanted


def test_a_measurement_changes_the_ring_where_another_is_faster_by_enough():
    watch = LinkWatch(_even(5))
    first = watch.topology.ring
    assert not watch.take(_even(5))
    slow = _slowed(_even(5), (first[0], first[1]))
    assert watch.take(slow)
    assert ring_bytes_per_s(slow, watch.topology.ring) == pytest.approx(1e9)
    assert not watch.take(slow)


def test_ranks_of_a_host_stay_neighbours():
    assert ring_places([0, 0, 1, 1, 2, 2], (0, 2, 1)) == (0, 1, 4, 5, 2, 3)
    assert ring_places([0, 1, 2], (0, 1, 2)) == (0, 1, 2)
    assert ring_places([2, 3], (0, 3, 1, 2)) == (1, 0)


def test_part_of_a_map_keeps_its_links():
    rates = [[10.0 * a + b + 1 for b in range(4)] for a in range(4)]
    part = part_of(map_of([[0.0] * 4] * 4, rates), (1, 3))
    assert part.bytes_per_s == ((12.0, 14.0), (32.0, 34.0))


def test_advice_names_islands_only_where_they_can_be():
    assert "parallel.island=2 would" in advice([(0, 1), (2, 3)], 1)
    for groups, islands in (
        ([(0, 1, 2)], 1),
        ([(0, 2), (1, 3)], 1),
        ([(0, 1), (2,)], 1),
        ([(0,), (1,)], 2),
    ):
        assert advice(groups, islands) == ""
