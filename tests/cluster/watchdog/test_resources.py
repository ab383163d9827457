"""The guarantees of cluster/watchdog/resources.py."""

import random

from cluster.watchdog.config import WatchdogConfig
from cluster.watchdog.evidence import HostMemory
from cluster.watchdog.resources import WARM_UP_STEPS, HostMemories, LateData
from tests.cluster.watchdog.given import HOSTS, rank_step

GIB = 1024**3


def memory(growth_gib, *, steps=200, noise_gib=0.3):
    memories, chance = HostMemories(500), random.Random(0)
    found = []
    for step in range(steps):
        used_gib = 20 + growth_gib * step + chance.gauss(0, noise_gib)
        own = HostMemory(used_bytes=int(used_gib * GIB), total_bytes=64 * GIB)
        found += memories.add(step, {"a": own}, now_s=step)
    return found


def feed(data, share_of, *, steps=60):
    for step in range(steps):
        data.add({r: rank_step(busy_s=0.2, data_s=share_of(step, r)) for r in range(4)})
    return data.findings(HOSTS, steps)


def late(share_of):
    """`share_of(step, rank)` of each step of 1 s is waiting for data."""
    return feed(LateData(WatchdogConfig()), share_of)


def test_growing_memory_is_said_once_per_quarter_of_the_horizon():
    found = memory(0.1)
    assert [finding.cause for finding in found] == ["memory-slope"] * len(found)
    assert 1 <= len(found) <= 2
    assert found[0].host == "a"


def test_the_rank_that_grew_most_is_named_and_first_steps_are_no_trend():
    memories, found = HostMemories(100), []
    for step in range(60):
        held = {0: GIB, 1: GIB * (1 + step)}
        own = HostMemory(
            used_bytes=int((8 + step / 2) * GIB), total_bytes=64 * GIB, ranks_bytes=held
        )
        found += [(step, finding) for finding in memories.add(step, {"a": own}, now_s=step)]
    (step, first), *_ = found
    assert step > WARM_UP_STEPS
    assert first.rank == 1
    assert "of its ranks, 1 grew most" in first.evidence[0]
    memories.forget()
    assert memories.add(60, {"a": own}, now_s=60.0) == []


def test_noisy_and_slowly_growing_memory_is_nothing():
    assert memory(0.0) == []
    assert memory(0.01) == []


def test_what_others_take_on_the_host_is_no_trend_of_the_run():
    memories, found = HostMemories(500), []
    for step in range(200):
        used = int((20 + 0.1 * step) * GIB)
        own = HostMemory(used_bytes=used, total_bytes=64 * GIB, ranks_bytes={0: GIB, 1: GIB})
        found += memories.add(step, {"a": own}, now_s=step)
    assert found == []


def test_growth_of_a_few_seconds_is_no_trend_however_many_steps_it_takes():
    memories, found = HostMemories(500), []
    for step in range(400):
        own = HostMemory(used_bytes=int((20 + 0.05 * step) * GIB), total_bytes=64 * GIB)
        found += memories.add(step, {"a": own}, now_s=0.05 * step)
    assert found == []


def test_batches_that_come_late_are_data_and_name_the_rank():
    (finding,) = late(lambda step, rank: 0.5 if rank == 2 and step > 30 else 0.02)
    assert (finding.kind, finding.rank, finding.host) == ("data", 2, "b")


def test_a_run_that_always_waited_for_its_data_is_not_at_fault():
    assert late(lambda step, rank: 0.5) == []


def test_a_few_late_batches_are_nothing():
    assert late(lambda step, rank: 0.6 if step % 3 == 0 else 0.02) == []


def test_a_late_rank_is_forgotten_with_the_ranks_it_was_among():
    data = LateData(WatchdogConfig())
    (finding,) = feed(data, lambda step, rank: 0.5 if rank == 3 and step > 30 else 0.02)
    assert finding.rank == 3
    data.forget()
    data.add({rank: rank_step(busy_s=0.2, data_s=0.02) for rank in range(3)})
    assert data.findings({rank: HOSTS[rank] for rank in range(3)}, 61) == []
