"""The guarantees of cluster/watchdog/hang.py and transfers.py."""

import pytest

from cluster.watchdog.hang import hangs
from tests.cluster.watchdog.given import collective, reading, standstill

LATE_S = 2.9
"""More than the 2.2 s that ranks with steps of half a second may be silent."""

WAITING = [reading(r, last={"world": 5}, pending=[collective(sequence=5)]) for r in range(4)]


def found(*readings, still_s=LATE_S, process=None):
    return hangs(standstill(*readings, still_s=still_s, process=process), stopped_s=1.0)


def test_the_rank_that_never_arrived_is_blamed_and_not_those_that_wait():
    behind = reading(2, phase="forward", last={"world": 4})
    (finding,) = found(WAITING[0], WAITING[1], behind, WAITING[3])
    assert (finding.rank, finding.host, finding.cause) == (2, "b", "never-arrived")
    assert (finding.communicator, finding.sequence) == ("world", 5)
    assert finding.phase == "forward"
    assert finding.title == "non-communication hang"
    assert "ranks [0, 1, 3] have waited" in str(finding)


def test_nobody_is_blamed_while_the_awaited_rank_is_within_its_time():
    behind = reading(2, phase="forward", last={"world": 4})
    assert found(WAITING[0], WAITING[1], behind, WAITING[3], still_s=1.0) == []


def test_following_the_waits_ends_at_the_one_that_waits_for_nobody():
    members = {"x": (0, 1), "y": (1, 2)}
    first = reading(0, members=members, last={"x": 3}, pending=[collective("x", 3)])
    second = reading(1, members=members, last={"x": 2, "y": 9}, pending=[collective("y", 9)])
    third = reading(2, members=members, last={"y": 8})
    (finding,) = found(first, second, third)
    assert (finding.rank, finding.communicator) == (2, "y")


def test_a_collective_that_all_entered_is_communication_and_names_the_link():
    pair = {"replica": (1, 3)}
    both = [
        reading(r, members=pair, last={"replica": 2}, pending=[collective("replica", 2)])
        for r in (1, 3)
    ]
    (finding,) = found(*both)
    assert (finding.cause, finding.link) == ("all-arrived", ("a", "b"))
    assert finding.title == "communication hang"
    assert finding.may_heal


def test_the_smallest_collective_that_is_open_too_long_says_most():
    world, pair = collective(sequence=5), collective("pair", 1)
    members = {"world": (0, 1, 2, 3), "pair": (0, 1)}
    ranks = [
        reading(r, members=members, last={"world": 5, "pair": 1}, pending=[pair, world])
        for r in (0, 1)
    ]
    (finding,) = found(*ranks, *WAITING[2:])
    assert (finding.communicator, finding.link) == ("pair", ("rank 0", "rank 1"))


def test_a_rank_that_never_began_what_others_began_is_named():
    unbegun = reading(1, last={"world": 5}, pending=[collective(sequence=5, started=False)])
    (finding,) = found(WAITING[0], unbegun, *WAITING[2:])
    assert (finding.rank, finding.cause) == (1, "never-started")
    assert not finding.communication


def test_a_rank_in_another_operation_than_the_others_is_named():
    other = reading(3, last={"world": 5}, pending=[collective(sequence=5, kind="broadcast")])
    (finding,) = found(*WAITING[:3], other)
    assert (finding.rank, finding.cause) == (3, "kind-mismatch")


def test_ranks_that_wait_in_a_ring_entered_in_different_orders():
    members = {"x": (0, 1), "y": (0, 1)}
    first = reading(0, members=members, last={"x": 1}, pending=[collective("x")])
    second = reading(1, members=members, last={"y": 1}, pending=[collective("y")])
    (finding,) = found(first, second)
    assert finding.cause == "order-mismatch"
    assert "rank 1 is in all_reduce 1 of communicator y" in str(finding)


@pytest.mark.parametrize(
    ("phase", "state", "kind"),
    [
        ("data", "sleeping", "data"),
        ("forward", "disk-wait", "storage"),
        ("forward", "running", "hang"),
    ],
)
def test_the_phase_and_the_system_say_what_a_rank_waits_for(phase, state, kind):
    behind = reading(1, phase=phase, last={"world": 4})
    (finding,) = found(WAITING[0], behind, *WAITING[2:], process={1: state})
    assert (finding.rank, finding.kind) == (1, kind)


def test_ranks_that_all_lack_data_share_one_finding():
    (finding,) = found(*(reading(r, phase="data") for r in range(4)))
    assert finding.kind == "data"
    assert "ranks [1, 2, 3] are in phase data" in str(finding)


def test_a_stopped_process_is_named_at_once_in_whatever_phase():
    saving = reading(0, phase="saving")
    (finding,) = found(saving, *WAITING[1:], still_s=1.1, process={0: "stopped"})
    assert (finding.rank, finding.cause, finding.phase) == (0, "process-stopped", "saving")


def test_two_ranks_that_hang_are_two_findings():
    behind = [reading(r, phase="forward", last={"world": 4}) for r in (1, 2)]
    assert {f.rank for f in found(WAITING[0], *behind, WAITING[3])} == {1, 2}


@pytest.mark.parametrize("phase", ["done", "rollouts"])
def test_a_rank_that_is_done_or_waits_for_those_who_sample_is_never_late(phase):
    assert found(reading(0, phase=phase), still_s=1e6) == []
