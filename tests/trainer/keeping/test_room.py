"""Whether snapshots fit is known before they are made."""

from trainer.keeping.room import room_problem

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
