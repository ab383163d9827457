"""The guarantees of comms/compression/econtrol.py, one by one."""

import torch
import torch.distributed as dist

from comms.compression.config import CompressionConfig
from comms.compression.exchange import Exchange
from tests.ranks import run_on_ranks

DIM = 100
STEPS = 240
SETTINGS = {
    "ef": {"method": "ef"},
    "econtrol": {"method": "econtrol"},
    "ef21": {"method": "ef21"},
    "low_rank": {"method": "econtrol", "contraction": "low_rank", "eta": 0.05},
    "quantized": {"method": "econtrol", "contraction": "quantized", "block_format": "fp4"},
    "rand_k": {"method": "econtrol", "contraction": "rand_k", "ratio": 0.3},
}


def _least_squares(ranks: int) -> tuple[list[float], list[torch.Tensor], torch.Tensor]:
    """f_i(x) = |a_i x - b_i|^2 / 2 with a_i = i / sqrt(n) and b_i ~ N(0, (zeta / i)^2): the
    synthetic problem of the EControl paper, heterogeneous by zeta."""
    generator = torch.Generator().manual_seed(7)
    scales = [(i + 1) / ranks**0.5 for i in range(ranks)]
    targets = [torch.randn(DIM, generator=generator) * 10 / (i + 1) for i in range(ranks)]
    pulls = sum(a * b for a, b in zip(scales, targets, strict=True))
    return scales, targets, pulls / sum(a * a for a in scales)


def _descend(rank: int) -> dict[str, float]:
    ranks = dist.get_world_size()
    scales, targets, solution = _least_squares(ranks)
    found = {}
    for name, settings in SETTINGS.items():
        config = CompressionConfig(
            **({"ratio": 0.1, "dense_below": 0, "values": "fp32", "dense_steps": 0} | settings)
        )
        exchange = Exchange(config, group=dist.group.WORLD, background=False)
        x = torch.zeros(DIM)
        for _ in range(STEPS):
            gradient = scales[rank] * (scales[rank] * x - targets[rank])
            exchange.start("x", gradient).wait()
            x -= 0.1 / ranks * gradient
        found[name] = float((x - solution).norm() / solution.norm())
    return found


def _invariants(rank: int) -> list[float]:
    config = CompressionConfig(
        method="econtrol", ratio=0.05, dense_below=0, eta=0.02, dense_steps=0
    )
    exchange = Exchange(config, group=dist.group.WORLD)
    unsent = torch.zeros(500)
    generator = torch.Generator().manual_seed(rank)
    for _ in range(7):
        gradient = torch.randn(500, generator=generator)
        unsent += gradient
        exchange.start("x", gradient).wait()
        exchange.commit()
        state = exchange.state_dict()
        unsent -= state["x/estimate"]
    estimates = state["x/estimate"].clone()
    dist.all_reduce(estimates)
    return [
        float((estimates - state["x/estimate_sum"]).abs().max()),
        float((state["x/residual"] - unsent).abs().max()),
        float((gradient - state["x/estimate_sum"]).abs().max()),
    ]


def _both(rank: int) -> tuple[dict[str, float], list[float]]:
    return _descend(rank), _invariants(rank)


def test_it_converges_where_error_feedback_does_not_and_keeps_its_books():
    results = run_on_ranks(2, _both)
    errors = results[0][0]
    assert errors["ef"] > 0.05
    for name in ("econtrol", "ef21", "quantized", "rand_k", "low_rank"):
        assert errors[name] < 0.02 * errors["ef"], errors
    for _, books in results:
        assert max(books) < 1e-4
