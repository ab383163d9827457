"""Optimizer states on disk: step time against the larger of compute and bytes over the disk's rate.

Each round measures, one after the other, the disk alone (as much read as written), the same update
in memory, and the update with states on disk, so that a noisy disk is noisy for all of them.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from harness import Result, options
from torch import nn

from offload.disk.speed import measure_speed
from offload.disk.tier import DiskTier
from offload.disk.wear import Wear
from offload.optimizer import InterleavedAdamW

MILLION = 1_000_000


class _Run:
    """Weights, gradients and an optimizer, stepped by hand."""

    def __init__(self, parameters: int, disk: DiskTier | None, subgroup: int) -> None:
        self.weights = [nn.Parameter(torch.full((parameters // 4,), 0.5)) for _ in range(4)]
        self.gradients = [torch.full_like(weight, 1e-3) for weight in self.weights]
        self.optimizer = InterleavedAdamW(
            self.weights, disk=disk, subgroup_parameters=subgroup, buffers=4
        )

    def seconds(self, steps: int) -> tuple[float, float]:
        """Seconds and disk bytes per step, steps following each other as updates alone do."""
        moved_bytes = 0
        begin_s = time.perf_counter()
        for _ in range(steps):
            for weight, gradient in zip(self.weights, self.gradients, strict=True):
                weight.grad = gradient.clone()
            self.optimizer.step()
            stats = self.optimizer.last_update
            moved_bytes += stats.disk_read_bytes + stats.disk_written_bytes
        return (time.perf_counter() - begin_s) / steps, moved_bytes / steps


def main() -> None:
    """Measure and print."""
    chosen = options(
        __doc__, millions=64, subgroup_millions=4, rounds=5, steps=3, threads=2, dir=""
    )
    torch.set_num_threads(chosen.threads)
    parameters = chosen.millions * MILLION
    result = Result(name="disk")
    with tempfile.TemporaryDirectory(dir=chosen.dir or None) as folder:
        speed = measure_speed([folder])
        tier = DiskTier([folder], capacity_bytes=9 * parameters, depth=speed.depth)
        try:
            _measure(result, chosen, tier, Path(folder), speed.depth)
        finally:
            tier.close()
    result.show(as_json=chosen.json)


def _measure(
    result: Result, chosen: argparse.Namespace, tier: DiskTier, folder: Path, depth: int
) -> None:
    parameters, subgroup = chosen.millions * MILLION, chosen.subgroup_millions * MILLION
    stored, resident = _Run(parameters, tier, subgroup), _Run(parameters, None, subgroup)
    stored.seconds(2), resident.seconds(2)
    step_s, bound_s, begin_s = [], [], time.perf_counter()
    for _ in range(chosen.rounds):
        rate = measure_speed([folder], depths=[depth]).mixed_bytes_per_s
        compute_s, _ = resident.seconds(chosen.steps)
        seconds, moved_bytes = stored.seconds(chosen.steps)
        step_s.append(seconds)
        bound_s.append(max(compute_s, moved_bytes / rate))
        result.braid |= {
            "disk_gbytes_per_s": rate / 1e9,
            "in_memory_step_s": compute_s,
            "step_s": seconds,
            "moved_gbytes_per_step": moved_bytes / 1e9,
            "stall_s": stored.optimizer.last_update.stall_s,
        }
    result.braid["depth"] = depth
    result.braid["direct"] = float(tier.direct)
    written = Wear(written_bytes=tier.counters.written_bytes, run_s=time.perf_counter() - begin_s)
    result.braid["years_left_of_600_tb_written"] = written.years_left(600e12)
    result.ratio("step_over_bound", step_s, bound_s)


if __name__ == "__main__":
    main()
