"""The guarantees of cluster/watchdog/slow.py."""

import random
import re

import pytest

from cluster.watchdog.config import WatchdogConfig
from cluster.watchdog.slow import SlowRanks
from tests.cluster.watchdog.given import HOSTS, rank_step

SAME = dict.fromkeys(range(4), "")


def fed(step_of, *, steps=40, roles=SAME, ranks=4):
    """Feed `step_of(step, rank, noise)`; the findings at the end."""
    slow, chance = SlowRanks(WatchdogConfig()), random.Random(0)
    for step in range(steps):
        row = {r: step_of(step, r, chance.lognormvariate(0, 0.1)) for r in range(ranks)}
        slow.add(step, row, roles)
    return slow.findings(HOSTS, "forward")


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_a_rank_at_half_speed_is_named(ranks):
    def step(_, rank, noise):
        return rank_step(busy_s=(0.5 if rank == 1 else 0.25) * noise)

    (finding,) = fed(step, ranks=ranks)
    assert (finding.rank, finding.host, finding.cause) == (1, "a", "slow-compute")
    assert finding.title == "non-communication slow"
    said = re.search(r"takes ([\d.]+) times", str(finding))
    assert said is not None
    assert float(said[1]) == pytest.approx(2.0, rel=0.15)


def test_a_slow_rank_is_told_by_its_busy_time_where_the_first_wait_comes_early():
    def step(_, rank, noise):
        return rank_step(busy_s=(0.8 if rank == 2 else 0.4) * noise, compute_s=0.001)

    assert [finding.rank for finding in fed(step)] == [2]


def test_noise_names_nobody():
    assert fed(lambda _, rank, noise: rank_step(busy_s=0.5 * noise**4)) == []


def test_a_slightly_slower_rank_is_not_slow():
    assert fed(lambda _, rank, noise: rank_step(busy_s=(0.6 if rank else 0.5) * noise)) == []


def test_a_pause_or_a_longer_step_for_all_names_nobody():
    def step(number, rank, noise):
        pause_s = 5.0 if rank == 3 and number % 10 == 0 else 0.0
        return rank_step(busy_s=(1.0 if number > 30 else 0.3) * noise + pause_s, duration_s=9.0)

    assert fed(step) == []


def test_waiting_for_a_slow_link_names_nobody():
    assert fed(lambda _, rank, noise: rank_step(busy_s=0.1 * noise, duration_s=5.0)) == []


def test_more_work_is_not_slowness():
    def step(_, rank, noise):
        more = 3.0 if rank == 0 else 1.0
        return rank_step(busy_s=0.2 * more * noise, work=1000 * more)

    assert fed(step) == []


@pytest.mark.parametrize("work", [1e-3, 1.0, 4e8, 1e18])
@pytest.mark.parametrize("role", ["same", "own"])
def test_a_slow_rank_is_named_whatever_unit_its_work_is_told_in(work, role):
    roles = {rank: "" if role == "same" else str(rank) for rank in range(4)}

    def step(number, rank, noise):
        slow = rank == 1 and number > 20
        return rank_step(busy_s=(0.06 if slow else 0.03) * noise, duration_s=0.08, work=work)

    assert [finding.rank for finding in fed(step, roles=roles)] == [1]


def test_ranks_that_computed_nothing_measurable_are_alike():
    assert fed(lambda *_: rank_step(busy_s=0.0, work=1e9)) == []


def test_only_ranks_of_one_role_are_compared():
    roles = {0: "first", 1: "first", 2: "last", 3: "last"}

    def step(_, rank, noise):
        return rank_step(busy_s=(0.2 if rank < 2 else 0.6) * noise)

    assert fed(step, roles=roles) == []
    assert len(fed(step)) == 2


def test_a_rank_without_peers_is_compared_with_its_own_past():
    roles = {0: "only", 1: "other", 2: "other", 3: "other"}

    def step(number, rank, noise):
        return rank_step(busy_s=(0.6 if rank == 0 and number > 20 else 0.3) * noise)

    assert [finding.rank for finding in fed(step, roles=roles)] == [0]


def test_all_slow_ranks_of_a_host_point_to_the_host():
    def step(_, rank, noise):
        return rank_step(busy_s=(0.6 if HOSTS[rank] == "b" else 0.2) * noise)

    findings = fed(step)
    assert {finding.rank for finding in findings} == {2, 3}
    assert all("all ranks of b are slow" in str(finding) for finding in findings)


def test_after_forgetting_nobody_is_slow():
    slow = SlowRanks(WatchdogConfig())
    for step in range(20):
        slow.add(step, {r: rank_step(busy_s=0.1 + 0.4 * (r == 1)) for r in range(4)}, SAME)
    assert slow.findings(HOSTS, "") != []
    slow.forget()
    assert slow.findings(HOSTS, "") == []
