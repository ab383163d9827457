"""The guarantees of comms/compression/quantized.py, one by one."""

import pytest
import torch
import torch.distributed as dist

from comms.compression.config import CompressionConfig
from comms.compression.exchange import Exchange
from tests.ranks import run_on_ranks

NUMEL = 5003
STEPS = 4


def _gradient(rank: int, step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(10 * step + rank)
    return torch.randn(NUMEL, generator=generator)


def _body(rank: int) -> dict[str, object]:
    ranks, found = dist.get_world_size(), {}
    for form in ("int8", "fp8", "fp4"):
        config = CompressionConfig(method="quantized", block_format=form, dense_below=0)
        exchange = Exchange(config, group=dist.group.WORLD, background=False)
        sent, given = torch.zeros(NUMEL), torch.zeros(NUMEL)
        for step in range(STEPS):
            flat = _gradient(rank, step)
            given += flat
            exchange.start("x", flat).wait()
            sent += flat
        exchange.commit()
        state = exchange.state_dict()
        parts = [torch.empty_like(state["x/sum_residual"]) for _ in range(ranks)]
        dist.all_gather(parts, state["x/sum_residual"])
        kept = state["x/residual"].clone()
        for tensor in (kept, given):
            dist.all_reduce(tensor)
        kept += torch.cat(parts)[:NUMEL]
        found[form] = {"last": flat, "sent": sent, "kept": kept, "given": given}
    tiny = torch.ones(5)
    exchange.start("tiny", tiny).wait()
    return found | {"tiny": tiny}


def test_sums_are_equal_add_up_and_do_not_get_worse_with_ranks():
    errors: dict[tuple[int, str], float] = {}
    for ranks in (2, 4):
        results = run_on_ranks(ranks, _body)
        assert results[0]["tiny"].tolist() == pytest.approx([ranks] * 5, rel=0.2)
        want = sum(_gradient(rank, STEPS - 1) for rank in range(ranks))
        for form in ("int8", "fp8", "fp4"):
            for result in results:
                mine = result[form]
                assert torch.equal(mine["last"], results[0][form]["last"])
                torch.testing.assert_close(
                    mine["sent"] + mine["kept"], mine["given"], rtol=1e-4, atol=1e-4
                )
            error = (results[0][form]["last"] - want).norm() / want.norm()
            errors[ranks, form] = float(error)
    for form, bound in (("int8", 0.03), ("fp8", 0.1), ("fp4", 0.4)):
        assert errors[2, form] < bound
        assert errors[4, form] < 1.2 * errors[2, form]
