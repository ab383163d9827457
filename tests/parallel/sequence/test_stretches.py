"""Who holds which stretch of a group's stream."""

from itertools import chain, pairwise

import pytest

from parallel.sequence.stretches import AttentionScheme, padding_multiple, token_ranges

SCHEMES = [
    AttentionScheme(ulysses=ulysses, ring=ring)
    for ulysses in (1, 2, 3, 4, 6)
    for ring in range(1, 7)
]


def tokens_of(ranges):
    return [token for start, stop in ranges for token in range(start, stop)]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_stretches_partition_the_stream_equally(scheme):
    total = 5 * padding_multiple(scheme)
    held = [tokens_of(token_ranges(total, scheme, p)) for p in range(scheme.degree)]
    assert {len(tokens) for tokens in held} == {total // scheme.degree}
    assert sorted(chain.from_iterable(held)) == list(range(total))
    assert all(tokens == sorted(tokens) for tokens in held)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_stretches_are_as_long_as_they_can_be(scheme):
    total = 4 * padding_multiple(scheme)
    for position in range(scheme.degree):
        ranges = token_ranges(total, scheme, position)
        assert all(a < b for a, b in ranges)
        assert all(left[1] < right[0] for left, right in pairwise(ranges))


@pytest.mark.parametrize("ring", [2, 3, 4, 7])
def test_every_block_has_the_same_number_of_causal_pairs(ring):
    total = 2 * ring * 5
    scheme = AttentionScheme(ring=ring)
    pairs = {
        sum(token + 1 for token in tokens_of(token_ranges(total, scheme, block)))
        for block in range(ring)
    }
    assert len(pairs) == 1


def test_ulysses_neighbours_hold_one_block_in_order():
    scheme, total = AttentionScheme(ulysses=2, ring=2), 16
    found = [token_ranges(total, scheme, position) for position in range(4)]
    assert found == [((0, 4),), ((12, 16),), ((4, 8),), ((8, 12),)]


def test_tokens_that_do_not_divide_are_refused_with_the_next_that_do():
    with pytest.raises(ValueError, match="pad them to 24, a multiple of 12"):
        token_ranges(13, AttentionScheme(ulysses=3, ring=2), 0)
    with pytest.raises(ValueError, match=r"position 4 is outside 0\.\.3"):
        token_ranges(16, AttentionScheme(ring=4), 4)


def test_sizes_that_make_no_scheme_are_refused():
    with pytest.raises(ValueError, match="choose a divisor of 4"):
        AttentionScheme(ring=4, hosts=3)
    with pytest.raises(ValueError, match="ulysses must be a positive number"):
        AttentionScheme(ulysses=0)
