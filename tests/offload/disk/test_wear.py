import math

import pytest

from offload.disk.wear import SECONDS_PER_YEAR, Wear


def test_a_disk_lasts_what_its_maker_promises_at_this_rate():
    wear = Wear(written_bytes=10**12, run_s=SECONDS_PER_YEAR / 100)
    assert wear.years_left(600e12) == pytest.approx(5.99)


def test_without_writes_it_lasts_for_ever():
    assert math.isinf(Wear(written_bytes=0, run_s=1.0).years_left(1e12))
