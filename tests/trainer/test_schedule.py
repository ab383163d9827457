"""The guarantees of trainer/schedule.py."""

from itertools import pairwise

import pytest

from trainer.config import SchedConfig
from trainer.reads import ReadLog
from trainer.schedule import build_schedule, followed_by


@pytest.mark.parametrize("name", ["cosine", "wsd", "constant"])
@pytest.mark.parametrize("warmup_steps", [0, 1, 10])
def test_schedules_rise_to_the_peak_and_end_where_they_say(name, warmup_steps):
    config = SchedConfig(name=name, warmup_steps=warmup_steps, min_lr_ratio=0.1)
    schedule = build_schedule(config, steps=50, peak=2.0)
    rates = [schedule(step) for step in range(1, 51)]
    for step in range(1, warmup_steps + 1):
        assert rates[step - 1] == pytest.approx(2.0 * step / warmup_steps)
    assert max(rates) <= 2.0
    assert min(rates) > 0
    assert rates[-1] == pytest.approx(2.0 if name == "constant" else 0.2)


def test_wsd_stays_until_its_last_part():
    config = SchedConfig(name="wsd", warmup_steps=0, decay_fraction=0.2, min_lr_ratio=0.0)
    schedule = build_schedule(config, steps=50, peak=1.0)
    assert [schedule(step) for step in (1, 40, 45, 50)] == pytest.approx([1.0, 1.0, 0.5, 0.0])


def test_a_schedule_reads_only_what_it_uses():
    log = ReadLog()
    build_schedule(log.watch(SchedConfig(name="constant")), steps=5, peak=1.0)
    assert log.read == {"name", "warmup_steps"}


@pytest.mark.parametrize("floor", [1.0, 0.1, 0.0])
def test_what_follows_falls_from_its_peak_to_its_floor_and_changes_nothing_before(floor):
    before = build_schedule(SchedConfig(name="cosine", warmup_steps=3), steps=10, peak=1.0)
    both = followed_by(before, after=10, steps=30, peak=0.5, floor=floor)
    assert [both(step) for step in range(1, 11)] == [before(step) for step in range(1, 11)]
    rates = [both(step) for step in range(11, 31)]
    assert rates[0] == 0.5
    assert rates[-1] == pytest.approx(0.5 * floor)
    falls = [a - b for a, b in pairwise(rates)]
    assert falls == pytest.approx([0.5 * (1.0 - floor) / 19] * 19)


def test_a_single_step_that_follows_has_the_peak():
    both = followed_by(lambda _: 1.0, after=4, steps=5, peak=0.5, floor=0.0)
    assert [both(4), both(5)] == [1.0, 0.5]
