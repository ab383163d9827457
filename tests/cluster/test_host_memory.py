"""The guarantees of cluster/host_memory.py."""

import random

from cluster.host_memory import GIB, host_memory_gib, read_memory, slope_alarm


def samples(per_step_gib: float, noise_gib: float = 0.0, count: int = 40) -> list[tuple[int, int]]:
    noise = random.Random(0)
    return [
        (step, int((8 + per_step_gib * step + noise.uniform(-noise_gib, noise_gib)) * GIB))
        for step in range(count)
    ]


def alarm(points: list[tuple[int, int]], horizon_steps: int = 500) -> str | None:
    return slope_alarm(points, capacity_bytes=64 * GIB, horizon_steps=horizon_steps)


def test_steady_memory_with_noise_raises_no_alarm() -> None:
    assert alarm(samples(0.0)) is None
    assert alarm(samples(0.0, noise_gib=2.0)) is None
    assert alarm(samples(-0.1)) is None


def test_growth_within_the_horizon_is_told_with_rate_and_rest() -> None:
    found = alarm(samples(0.5, noise_gib=0.1))
    assert found is not None
    assert "+0.5 GiB per step" in found
    assert "27.5 of 64.0 GiB in use, full in about 72 steps" in found


def test_growth_that_is_slow_enough_raises_no_alarm() -> None:
    assert alarm(samples(0.01), horizon_steps=500) is None
    assert alarm(samples(0.5), horizon_steps=0) is None


def test_a_single_jump_is_no_trend() -> None:
    points = samples(0.0)
    assert alarm([(s, b + (10 * GIB if s > 35 else 0)) for s, b in points]) is None


def test_few_samples_say_nothing() -> None:
    assert alarm(samples(1.0, count=4)) is None


def test_memory_of_this_host_is_read() -> None:
    memory = read_memory()
    assert 0 < memory.process_bytes < memory.host_used_bytes < memory.host_total_bytes
    assert 0 < host_memory_gib() < memory.host_total_bytes / GIB
