"""Whether snapshots fit is known before they are made."""

from trainer.keeping.room import COPIES, needs_of_host, room_problem

GIB = 1024**3


def _problem(needs, *, memory=100, folder=100):
    return room_problem(
        [need * GIB for need in needs],
        memory_bytes=memory * GIB,
        folder_bytes=folder * GIB,
        folder="/dev/shm",
    )


def test_needs_of_a_host_are_added_up():
    assert _problem([20, 20]) is None
    assert "2 ranks need 60 GiB, more than 50% of the 100 GiB" in _problem([30, 30])
    assert "need 60 GiB, and /dev/shm has 50 GiB free" in _problem([30, 30], folder=50)


def test_problems_name_the_remedies():
    for problem in (_problem([60]), _problem([60], folder=1)):
        assert "keep.interval_steps=0" in problem
        assert "shard over more hosts" in problem


def test_a_host_needs_room_for_copies_that_it_keeps_for_others():
    sizes = [("a", 10), ("a", 10), ("b", 1), ("b", 2), ("c", 5)]
    assert needs_of_host("a", sizes, slots=4, copies=1) == [40, 40, COPIES * 5]
    assert needs_of_host("b", sizes, slots=4, copies=1) == [4, 8, COPIES * 10, COPIES * 10]
    assert needs_of_host("b", sizes, slots=2, copies=0) == [2, 4]
