"""The guarantees of cluster/recovery/grow.py."""

from cluster.recovery.grow import LONGEST_WAIT_S, WORTH_S, Growth

LONG = 10 * WORTH_S


def test_the_wait_begins_at_the_last_change_and_doubles_with_losses() -> None:
    growth = Growth(mode="auto", after_s=30.0)
    waits = []
    for number in range(12):
        growth.lost(1000.0 * number)
        at = next(t for t in range(20000) if growth.due(1000.0 * number + t, rest_s=LONG))
        waits.append(at)
    assert waits[:4] == [30, 60, 120, 240]
    assert waits[-1] == LONGEST_WAIT_S
    growth = Growth(mode="auto", after_s=30.0)
    growth.changed(50.0)
    assert not growth.due(79.0, rest_s=LONG)
    assert growth.due(80.0, rest_s=LONG)


def test_not_where_it_is_not_worth_it_or_not_wanted() -> None:
    assert not Growth(mode="auto", after_s=1.0).due(100.0, rest_s=WORTH_S)
    assert not Growth(mode="never", after_s=1.0).due(100.0, rest_s=LONG)
