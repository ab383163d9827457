"""Rates are measured, positive, and the same peak on all ranks; times have an order."""

import torch

from comms.config import RankEnvironment
from comms.groups import device_of
from tests.ranks import run_on_ranks
from trainer.measure import measure_hardware
from trainer.memory import device_capacity_bytes, device_memory_gib
from trainer.stopwatch import Stopwatch

CPU = torch.device("cpu")


def _measure(rank: int) -> tuple[float, ...]:
    found = measure_hardware(CPU, ranks_per_host=2)
    assert found.links is not None
    return (
        found.peak_flops_per_s,
        found.flops_per_s,
        found.update_parameters_per_s,
        found.link_bytes_per_s,
        found.links.inside_bytes_per_s,
        found.links.between_bytes_per_s,
        found.links.between(2),
    )


def test_rates_are_positive_and_the_peak_is_agreed():
    results = run_on_ranks(4, _measure)
    assert all(rate > 0 for result in results for rate in result)
    assert results[0][0] == results[1][0]
    # All ranks know the same links, or each would plan for itself.
    assert len({result[4:] for result in results}) == 1


def test_memory_of_a_rank_is_part_of_the_hosts():
    assert 0 < device_memory_gib(CPU) * 2**30 < device_capacity_bytes(CPU, ranks_on_host=1)
    whole = device_capacity_bytes(CPU, ranks_on_host=1)
    assert device_capacity_bytes(CPU, ranks_on_host=2) == whole // 2


def test_a_stopwatch_measures_between_marks():
    watch = Stopwatch(CPU)
    watch.mark("begin")
    watch.mark("middle")
    watch.mark("end")
    assert 0 <= watch.seconds("begin", "middle") <= watch.seconds("begin", "end")
    assert watch.seconds("begin", "never") == 0.0


def test_a_rank_names_its_device():
    fields = {"rank": 3, "world_size": 8, "local_rank": 1, "local_world_size": 2}
    place = {"host": "h", "master_address": "127.0.0.1", "master_port": 1}
    assert device_of(RankEnvironment(**fields, **place)) == CPU
    gpu = RankEnvironment(**fields, **place, device_type="cuda")
    assert device_of(gpu) == torch.device("cuda", 1)
