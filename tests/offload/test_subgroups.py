import pytest
from hypothesis import given
from hypothesis import strategies as st

from offload.subgroups import ALIGNMENT, PAGE_ELEMENTS, cut_subgroups

GROUPS = st.lists(st.lists(st.integers(0, 9000), max_size=6), min_size=1, max_size=3)


def numbered(groups):
    count = iter(range(1000))
    return [[(next(count), size) for size in sizes] for sizes in groups]


@given(groups=GROUPS, limit=st.integers(PAGE_ELEMENTS, 10_000))
def test_subgroups_hold_every_element_once(groups, limit):
    parameters = numbered(groups)
    subgroups = cut_subgroups(parameters, limit)
    seen: dict[int, list[tuple[int, int]]] = {}
    owner = {index: group for group, part in enumerate(parameters) for index, _ in part}
    for number, subgroup in enumerate(subgroups):
        assert subgroup.index == number
        assert subgroup.size <= limit
        assert subgroup.size % PAGE_ELEMENTS == 0
        end = 0
        for segment in subgroup.segments:
            assert owner[segment.parameter] == subgroup.group
            assert segment.start % ALIGNMENT == 0
            assert segment.offset % ALIGNMENT == 0
            assert segment.offset >= end
            end = segment.offset + segment.length
            seen.setdefault(segment.parameter, []).append((segment.start, segment.length))
        assert end <= subgroup.size
    for index, size in (item for part in parameters for item in part):
        at = 0
        for start, length in sorted(seen.get(index, [])):
            assert start == at
            at += length
        assert at == size


def test_subgroups_are_of_about_equal_size():
    sizes = [s.size for s in cut_subgroups([[(0, 100_000)]], 30_000)]
    assert len(sizes) == 4
    assert max(sizes) - min(sizes) <= 4 * PAGE_ELEMENTS


def test_a_limit_below_a_page_is_refused():
    with pytest.raises(ValueError, match="at least 1024"):
        cut_subgroups([[(0, 10)]], 100)
