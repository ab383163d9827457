from itertools import combinations, pairwise

from hypothesis import given
from hypothesis import strategies as st

from trainer.planner.assignment.buckets import CANDIDATES, bucket_ends

LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=9).map(
    lambda lengths: sorted(lengths, reverse=True)
)


def padding(lengths, ends):
    return sum(
        lengths[first] - length
        for first, last in pairwise((0, *ends))
        for length in lengths[first:last]
    )


@given(LENGTHS, st.integers(1, 9))
def test_buckets_cover_all_rows_and_none_is_empty(lengths, buckets):
    ends = bucket_ends(lengths, buckets)

    assert ends[-1] == len(lengths)
    assert all(first < last for first, last in pairwise((0, *ends)))
    assert len(ends) == min(buckets, len(set(lengths)))


@given(LENGTHS, st.integers(1, 4))
def test_no_other_choice_of_as_many_buckets_pads_less(lengths, buckets):
    ends = bucket_ends(lengths, buckets)

    inner = combinations(range(1, len(lengths)), len(ends) - 1)
    least = min(padding(lengths, (*cut, len(lengths))) for cut in inner)
    assert padding(lengths, ends) == least


def test_more_lengths_than_borders_are_considered_keep_the_tail_apart():
    lengths = [1_000_000, 90_000, *range(3 * CANDIDATES, 0, -1)]

    ends = bucket_ends(lengths, 8)
    assert ends[:2] == (1, 2)
    assert ends[-1] == len(lengths)
