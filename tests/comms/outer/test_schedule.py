"""The guarantees of comms/outer/schedule.py, one by one."""

import pytest

from comms.outer.config import DilocoConfig
from comms.outer.schedule import (
    OuterSchedule,
    mean_bytes_per_s,
    most_fragments,
    peak_bytes_per_s,
    schedule_of,
    split_blocks,
    split_parameters,
)

CASES = [(1, 0, 1), (6, 0, 1), (6, 5, 1), (6, 1, 3), (30, 4, 5), (100, 5, 4)]


def _departures(schedule: OuterSchedule, steps: int) -> list[tuple[int, int]]:
    """Step and fragment of every exchange."""
    leaving = [step for step in range(1, steps + 1) if schedule.leaves(step)]
    return [(step, schedule.fragment(number)) for number, step in enumerate(leaving)]


@pytest.mark.parametrize("case", CASES)
def test_every_fragment_leaves_once_in_any_window_at_its_own_offset(case):
    schedule = OuterSchedule(*case)
    departures = _departures(schedule, 5 * schedule.every)
    for begin in range(1, 3 * schedule.every):
        window = [f for step, f in departures if begin <= step < begin + schedule.every]
        assert sorted(window) == list(range(schedule.fragments))
    for step, fragment in departures:
        assert (step - schedule.offset(fragment)) % schedule.every == 0


@pytest.mark.parametrize("case", CASES)
def test_one_fragment_at_most_is_under_way_and_is_merged_in_time(case):
    schedule = OuterSchedule(*case)
    under_way = None
    for step in range(1, 5 * schedule.every):
        if schedule.merges(step) and schedule.overlap_steps:
            assert step - under_way == schedule.overlap_steps
            under_way = None
        if schedule.leaves(step) and schedule.overlap_steps:
            assert under_way is None
            under_way = step


def test_islands_of_different_speed_agree_on_the_fragments():
    fast, slow = OuterSchedule(40, 3, 4), OuterSchedule(12, 1, 4)
    one = [fragment for _, fragment in _departures(fast, 200)]
    other = [fragment for _, fragment in _departures(slow, 60)]
    assert one == other


def test_what_does_not_fit_is_refused_with_values_that_do():
    with pytest.raises(ValueError, match=r"every=98 or 105, or one of .*\b5\b") as error:
        schedule_of(DilocoConfig(every=100), 7)
    for every in (98, 105):
        assert schedule_of(DilocoConfig(every=every), 7).period == every // 7
        assert str(every) in str(error.value)
    with pytest.raises(ValueError, match="Choose 0 to 4, or every=30"):
        OuterSchedule(25, 5, 5)
    assert OuterSchedule(25, 4, 5).period == 5
    assert OuterSchedule(30, 5, 5).period == 6
    with pytest.raises(ValueError, match="every=3"):
        OuterSchedule(2, 0, 3)
    with pytest.raises(ValueError, match="at least one"):
        OuterSchedule(2, 0, 0)


def test_the_most_fragments_that_fit_are_found():
    for every in range(1, 40):
        for overlap_steps in range(every):
            config = DilocoConfig(every=every, overlap_steps=overlap_steps)
            found = most_fragments(config, 5)
            assert schedule_of(config, found).fragments <= 5
            for more in range(found + 1, 6):
                with pytest.raises(ValueError, match=r"[Cc]hoose"):
                    schedule_of(config, more)


def test_the_peak_is_the_largest_fragment_within_the_overlap():
    sizes = [100, 300, 200]
    assert peak_bytes_per_s(sizes, 5, 0.5) == 300 / 2.5
    assert peak_bytes_per_s(sizes, 0, 0.5) == float("inf")
    assert mean_bytes_per_s(sizes, 100, 0.5) == 600 / 50
    assert peak_bytes_per_s([sum(sizes)], 5, 0.5) == 2 * peak_bytes_per_s(sizes, 5, 0.5)


def test_blocks_are_dealt_out_strided_or_in_runs():
    assert split_blocks(range(7), 3) == [[0, 3, 6], [1, 4], [2, 5]]
    assert split_blocks(range(7), 3, "sequential") == [[0, 1], [2, 3], [4, 5, 6]]
    with pytest.raises(ValueError, match="Choose 1 to 7"):
        split_blocks(range(7), 8)


def test_every_parameter_travels_in_one_fragment():
    named = {f"layers.{n}.{part}": n for n in range(11) for part in ("w", "b")}
    named |= {"tokens": -1, "head": -2}
    found = split_parameters(named, [f"layers.{n}" for n in range(11)], 3)
    assert sorted(name for part in found for name in part) == sorted(named)
    assert {"layers.1.w", "layers.10.w"} <= found[1].keys()
    with pytest.raises(ValueError, match=r"below \['blocks.0'\]"):
        split_parameters(named, ["layers.0", "blocks.0"], 1)
