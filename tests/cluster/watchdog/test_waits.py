"""The guarantees of cluster/watchdog/waits.py."""

from cluster.watchdog.waits import current, modes, open_waits, rings
from tests.cluster.watchdog.given import collective, evidence, reading

ALL = {"world": 5}


def test_a_rank_waits_for_the_members_whose_sequence_is_behind():
    readings = {
        0: reading(0, last=ALL, pending=[collective(sequence=5)]),
        1: reading(1, last={"world": 4}),
        2: reading(2, last=ALL, pending=[collective(sequence=5)]),
        3: reading(3, last={}),
    }
    waits = open_waits(readings)
    assert [(wait.rank, wait.missing) for wait in waits] == [(0, (1, 3)), (2, (1, 3))]
    assert modes(readings, waits) == {0: "waiting", 1: "own", 2: "waiting", 3: "own"}


def test_all_in_the_same_collective_are_in_a_transfer():
    readings = {
        rank: reading(rank, last=ALL, pending=[collective(sequence=5)]) for rank in range(4)
    }
    assert set(modes(readings, open_waits(readings)).values()) == {"transfer"}


def test_a_collective_beside_compute_holds_nobody_up():
    beside = collective(sequence=5, awaited=False)
    readings = {rank: reading(rank, last=ALL, pending=[beside]) for rank in range(3)}
    readings[3] = reading(3)
    waits = open_waits(readings)
    assert set(modes(readings, waits).values()) == {"own"}
    assert rings(waits) == []


def test_ranks_that_wait_for_one_another_are_a_ring_and_those_behind_them_are_not():
    members = {"x": (0, 1), "y": (0, 1), "z": (1, 2)}
    readings = {
        0: reading(0, members=members, last={"x": 1}, pending=[collective("x")]),
        1: reading(1, members=members, last={"y": 1}, pending=[collective("y")]),
        2: reading(2, members=members, last={"z": 1}, pending=[collective("z")]),
    }
    assert rings(open_waits(readings)) == [(0, 1)]


def test_members_that_are_not_told_are_those_that_used_the_communicator():
    readings = {
        0: reading(0, members={}, last={"x": 2}, pending=[collective("x", 2)]),
        1: reading(1, members={}, last={"x": 1}),
        2: reading(2, members={}, last={"y": 1}),
    }
    (wait,) = open_waits(readings)
    assert (wait.members, wait.missing) == ((0, 1), (1,))


def test_only_the_newest_generation_can_meet():
    old, new = reading(0, generation=1), reading(1, generation=2)
    assert set(current(evidence(old, new))) == {1}
