"""The guarantees of cluster/watchdog/told.py."""

from cluster.watchdog.finding import Finding
from cluster.watchdog.told import GONE_S, Told


def finding(rank=1, *, kind="slow", cause="slow-compute", link=None):
    return Finding(
        kind=kind,
        cause=cause,
        rank=rank,
        link=link,
        detected_after_s=1.0,
        confidence=0.9,
        evidence=("",),
    )


def test_what_stands_or_comes_and_goes_is_told_once():
    told = Told()
    times_s = [0.0, 0.25, 50.0, 50.0 + GONE_S, 49.0 + 2 * GONE_S]
    assert [told.is_new(finding(), at_s) for at_s in times_s] == [True, False, False, False, False]
    assert told.is_new(finding(2), 51.0)
    links = [finding(None, cause="slow-link", link=("a", end)) for end in ("b", "c", "b")]
    assert [told.is_new(link, 52.0) for link in links] == [True, True, False]


def test_what_was_gone_is_told_again_when_it_comes_back():
    told = Told()
    assert told.is_new(finding(), 10.0)
    assert told.is_new(finding(), 11.0 + GONE_S)
    assert not told.is_new(finding(), 12.0 + GONE_S)


def test_memory_is_told_as_often_as_it_is_found():
    told = Told()
    grows = finding(kind="memory", cause="memory-slope")
    assert all(told.is_new(grows, at_s) for at_s in (1.0, 2.0, 3.0))
