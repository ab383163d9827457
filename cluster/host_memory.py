"""Memory of this host and process, and an alarm before it runs out.

The alarm is a pure function. Guarantees, each asserted in tests/cluster/test_host_memory.py:
- steady use never raises it, noise included;
- growth that fills the memory within the horizon raises it, with rate and remaining steps;
- growth that does not, does not.
"""

from collections.abc import Sequence
from statistics import median

import psutil

from cluster.reading import Memory

GIB = 1024**3
MINIMUM_SAMPLES = 8
"""Fewer say nothing about a trend."""


def read_memory() -> Memory:
    """Memory right now."""
    host = psutil.virtual_memory()
    return Memory(
        host_used_bytes=host.total - host.available,
        host_total_bytes=host.total,
        process_bytes=psutil.Process().memory_info().rss,
    )


def host_memory_gib() -> float:
    """Memory in use on this host."""
    return read_memory().host_used_bytes / GIB


def slope_alarm(
    samples: Sequence[tuple[int, int]], *, capacity_bytes: int, horizon_steps: int
) -> str | None:
    """Rate and remaining steps if memory is full within `horizon_steps`, else None.

    `samples` are (step, bytes in use) with rising steps. The rate is the median of all pairwise
    slopes (Theil 1950, Sen 1968), which single spikes do not move.
    """
    if horizon_steps <= 0 or len(samples) < MINIMUM_SAMPLES:
        return None
    slope_bytes = _slope(samples)
    rise_bytes = slope_bytes * (samples[-1][0] - samples[0][0])
    if slope_bytes <= 0 or rise_bytes <= 3 * _spread(samples, slope_bytes):
        return None
    used_bytes = samples[-1][1]
    steps_left = max(0, int((capacity_bytes - used_bytes) / slope_bytes))
    if steps_left > horizon_steps:
        return None
    return (
        f"+{slope_bytes / GIB:.2g} GiB per step, {used_bytes / GIB:.1f} of "
        f"{capacity_bytes / GIB:.1f} GiB in use, full in about {steps_left} steps"
    )


def _slope(samples: Sequence[tuple[int, int]]) -> float:
    slopes = [
        (later[1] - earlier[1]) / (later[0] - earlier[0])
        for index, earlier in enumerate(samples)
        for later in samples[index + 1 :]
        if later[0] > earlier[0]
    ]
    return median(slopes) if slopes else 0.0


def _spread(samples: Sequence[tuple[int, int]], slope_bytes: float) -> float:
    """Median distance of the samples from their own trend."""
    rests = [used - slope_bytes * step for step, used in samples]
    middle = median(rests)
    return median(abs(rest - middle) for rest in rests)
