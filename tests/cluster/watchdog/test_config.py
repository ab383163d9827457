"""Values that cluster/watchdog/config.py refuses."""

import pytest

from cluster.watchdog.config import WatchdogConfig


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("stuck_floor_s", 0.0, "must be positive"),
        ("silence_s", -1.0, "must be positive"),
        ("slow_ratio", 1.0, "above 1"),
        ("window_steps", 4, "at least 5"),
    ],
)
def test_an_impossible_value_is_refused_by_name(key, value, says):
    with pytest.raises(ValueError, match=f"watchdog.{key} .*{says}"):
        WatchdogConfig(**{key: value})


def test_no_horizon_means_no_memory_alarm():
    assert WatchdogConfig(memory_horizon_steps=0).memory_horizon_steps == 0
