"""The guarantees of comms/links/tournament.py, one by one."""

from itertools import combinations

import pytest

from comms.links.tournament import opponent, rounds


@pytest.mark.parametrize("places", range(1, 14))
def test_every_pair_meets_once_in_the_fewest_rounds(places):
    found = rounds(places)
    met = sorted(pair for one in found for pair in one)
    assert met == list(combinations(range(places), 2))
    assert len(found) == places - 1 + places % 2
    for pairs in found:
        busy = [place for pair in pairs for place in pair]
        assert len(busy) == len(set(busy))


def test_opponents_are_mutual_and_a_place_left_over_has_none():
    for pairs in rounds(5):
        alone = [place for place in range(5) if opponent(pairs, place) is None]
        assert len(alone) == 1
        for place in set(range(5)) - set(alone):
            assert opponent(pairs, opponent(pairs, place)) == place
