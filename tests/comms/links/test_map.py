"""The guarantees of comms/links/map.py, one by one."""

import pytest

from comms.links.map import LinkMap, map_of


def even(places: int, *, latency_s: float = 1e-4, bytes_per_s: float = 1e8) -> LinkMap:
    return map_of([[latency_s] * places] * places, [[bytes_per_s] * places] * places)


def test_a_link_that_keeps_its_rate_keeps_its_estimate():
    links = even(3)
    for sent_bytes in (10, 10**4, 10**7):
        seen = links.observe((0, 1), sent_bytes, links.seconds((0, 1), sent_bytes))
        assert seen.seconds((0, 1), 10**6) == pytest.approx(links.seconds((0, 1), 10**6))


def test_a_link_that_changes_is_followed_by_a_share_of_the_distance():
    links = even(3)
    slow = 1e-4 + 10**7 / 1e7
    once = links.observe((0, 1), 10**7, slow, share=0.5)
    assert 1 / once.bytes_per_s[0][1] == pytest.approx((1 / 1e8 + 1 / 1e7) / 2)
    for _ in range(40):
        links = links.observe((0, 1), 10**7, slow, share=0.5)
    assert links.bytes_per_s[0][1] == pytest.approx(1e7, rel=1e-6)


def test_an_observation_moves_what_made_up_its_time_and_no_other_link():
    links = even(3)
    small = links.observe((2, 1), 8, 1e-2)
    large = links.observe((2, 1), 10**7, 1.0)
    assert small.bytes_per_s == links.bytes_per_s
    assert large.latency_s == links.latency_s
    assert small.latency_s[2][1] > links.latency_s[2][1]
    assert large.bytes_per_s[2][1] < links.bytes_per_s[2][1]
    for a, b in links.links():
        if (a, b) != (2, 1):
            assert (
                large.seconds((a, b), 99) == small.seconds((a, b), 99) == links.seconds((a, b), 99)
            )


def test_what_cannot_be_is_refused():
    links = even(2)
    for link, sent_bytes, seconds in (((0, 0), 1, 1.0), ((0, 2), 1, 1.0), ((0, 1), 0, 1.0)):
        with pytest.raises(ValueError, match="cannot be"):
            links.observe(link, sent_bytes, seconds)
    with pytest.raises(ValueError, match="cannot be"):
        links.observe((0, 1), 1, 0.0)
    with pytest.raises(ValueError, match="rows of 2"):
        map_of([[0, 0]], [[1, 1], [1, 1]])
    with pytest.raises(ValueError, match="from 1 to 0 has"):
        map_of([[0, 0], [0, 0]], [[1, 1], [0, 1]])
