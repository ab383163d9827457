"""What compression costs one core: nanoseconds per gradient element and step.

    python benchmarks/slow_link_cost.py [--numel 8000000] [--rounds 7] [--json]

Two ranks of this machine exchange, so encoding, state and decoding are all in it. Figures are the
CPU time of the calling thread, which waits for the link and other programs least disturb.
"""

import argparse
import statistics
import time
from typing import Any

import torch
import torch.distributed as dist
from harness import Result, options

from comms.compression.config import CompressionConfig
from comms.compression.exchange import Exchange
from comms.config import RankEnvironment
from comms.groups import join, leave

METHODS: dict[str, dict[str, Any]] = {
    "none": {"method": "none"},
    "fp16": {"method": "fp16"},
    "dgc": {"method": "dgc", "momentum": 0.9},
    "econtrol": {"method": "econtrol", "ratio": 0.01},
    "ef": {"method": "ef", "ratio": 0.01},
    "powersgd": {"method": "powersgd"},
    "powersgd8": {"method": "powersgd", "rank": 8},
    "powersgd16_fp4": {"method": "powersgd", "rank": 16, "values": "fp4"},
    "powersgd32_fp4": {"method": "powersgd", "rank": 32, "values": "fp4"},
    "int8": {"method": "quantized"},
    "fp8": {"method": "quantized", "block_format": "fp8"},
    "fp4": {"method": "quantized", "block_format": "fp4"},
}


def cost_ns(settings: dict[str, Any], gradient: torch.Tensor, rounds: int) -> float:
    """Median nanoseconds per element of one exchange."""
    config = CompressionConfig(**settings, dense_steps=0)
    exchange = Exchange(config, group=dist.group.WORLD, background=False)
    cols = 2000
    seconds = []
    for _ in range(rounds + 2):
        flat = gradient.clone()
        begin_s = time.thread_time()
        exchange.start("gradient", flat, [(flat.numel() // cols, cols)]).wait()
        seconds.append(time.thread_time() - begin_s)
    # The first two allocate what later ones reuse.
    return 1e9 * statistics.median(seconds[2:]) / gradient.numel()


def _rank(rank: int, arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    join(RankEnvironment.on_this_machine(rank, 2, arguments.port), deadline_s=60)
    numel = arguments.numel // 2000 * 2000
    gradient = torch.randn(numel, generator=torch.Generator().manual_seed(rank))
    result = Result(name="slow_link_cost")
    for name, settings in METHODS.items():
        cost = cost_ns(settings, gradient, arguments.rounds)
        result.braid[f"{name}_ns_per_element"] = cost
    leave()
    if rank == 0:
        result.show(as_json=arguments.json)


if __name__ == "__main__":
    chosen = options(__doc__, numel=8_000_000, rounds=7, port=29_412)
    torch.multiprocessing.start_processes(_rank, (chosen,), nprocs=2, start_method="spawn")
