"""The guarantees of trainer/islands/reunion.py, one by one."""

from itertools import product

from comms.outer.schedule import OuterSchedule
from trainer.islands.reunion import Standing, reunite


def _standing(step: int, **changes) -> Standing:
    fields = {"generation": 1, "begun": 2, "committed": 2, "members": (0, 1, 2)}
    return Standing(**{**fields, "step": step, **changes})


def test_islands_of_one_moment_go_on_together():
    found = {0: _standing(7), 1: _standing(9), 2: _standing(8)}
    reunion = reunite((0, 1, 2), found)
    assert reunion is not None
    assert (reunion.joining, reunion.teller) == ((), None)
    assert (reunion.first_step, reunion.last_step) == (7, 9)
    assert [reunion.source(island) for island in range(3)] == [0, 1, 2]


def test_who_merged_tells_those_who_did_not():
    found = {0: _standing(7), 1: _standing(8, committed=3), 2: _standing(8, committed=3)}
    reunion = reunite((0, 1, 2), found)
    assert reunion is not None
    assert (reunion.teller, reunion.exchange) == (1, 2)
    assert [reunion.listens(island) for island in range(3)] == [True, False, False]
    # Of those that are left, all know.
    alone = reunite((1, 2), found)
    assert alone is not None
    assert alone.teller is None


def test_who_has_no_snapshot_of_that_moment_joins():
    members = (0, 1, 2)
    elsewhere = {
        "gone": None,
        "of an earlier moment": _standing(2),
        "of another membership": _standing(9, members=(0, 2)),
        "two exchanges behind": _standing(7, begun=0, committed=0),
    }
    for other in elsewhere.values():
        found = {0: _standing(8, generation=2), 1: _standing(9)}
        found |= {} if other is None else {2: other}
        reunion = reunite(members, found)
        assert reunion is not None
        assert reunion.joining == (2,)
        assert reunion.source(2) == reunion.furthest == 1
        assert not reunion.listens(2)


def test_without_a_snapshot_there_is_no_reunion():
    assert reunite((0, 1), {}) is None
    assert reunite((0, 1), {2: _standing(3)}) is None


def test_one_exchange_at_most_is_open_between_the_newest_snapshots():
    """Islands that run as they do, killed at any moment: the premise of a reunion."""
    for every, overlap in ((1, 0), (2, 0), (2, 1), (3, 2)):
        schedule = OuterSchedule(every, overlap, 1)
        for step_0, step_1 in product(range(1, 16), repeat=2):
            standings = [_at(schedule, step) for step in (step_0, step_1)]
            ahead, behind = sorted(standings, key=lambda s: s.step, reverse=True)
            # An exchange ends only after the other has sent, whose vote of that step says that
            # the snapshot before it is whole.
            if ahead.committed and behind.step < ahead.committed * every - 1:
                continue
            assert ahead.committed - behind.committed <= 1


def _at(schedule: OuterSchedule, step: int) -> Standing:
    begun = step // schedule.every
    landed = sum(n * schedule.every + schedule.overlap_steps <= step for n in range(1, begun + 1))
    return _standing(step, begun=begun, committed=landed)
