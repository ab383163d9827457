"""The guarantees of comms/compression/powersgd.py, one by one."""

import torch
import torch.distributed as dist

from comms.compression.config import CompressionConfig
from comms.compression.exchange import Exchange
from tests.ranks import run_on_ranks

SHAPES = [(60, 40), (50,), (30, 80)]
NUMEL = 60 * 40 + 50 + 30 * 80


def _gradient(rank: int, step: int, key: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 * step + 10 * key + rank)
    return torch.randn(NUMEL, generator=generator)


def _low_rank(rank: int) -> torch.Tensor:
    """Matrices of rank 2 once summed, though not on any one rank."""
    generator = torch.Generator().manual_seed(rank)
    parts = [
        (torch.randn(n, 1, generator=generator) @ torch.randn(1, m, generator=generator)).flatten()
        for n, m in ((60, 40), (30, 80))
    ]
    return torch.cat([parts[0], torch.randn(50, generator=generator), parts[1]])


def _exchange(values: str) -> Exchange:
    config = CompressionConfig(
        method="powersgd", rank=2, dense_below=100, dense_steps=0, values=values
    )
    return Exchange(config, group=dist.group.WORLD)


def _body(rank: int) -> dict[str, dict[str, object]]:
    whole, flat = _exchange("fp32"), _low_rank(rank)
    whole.start("x", flat, SHAPES).wait()
    want = _low_rank(rank)
    dist.all_reduce(want)
    found = {values: _with(rank, values) for values in ("fp32", "int8", "fp4")}
    return found | {"whole": {"got": flat, "want": want}}


def _with(rank: int, values: str) -> dict[str, object]:
    exchange = _exchange(values)
    sent = torch.zeros(3, NUMEL)
    given = torch.zeros(3, NUMEL)
    for step in range(5):
        flats = [_gradient(rank, step, key) for key in range(3)]
        given += torch.stack(flats)
        for one in [exchange.start(str(key), flat, SHAPES) for key, flat in enumerate(flats)]:
            one.wait()
        sent += torch.stack(flats)
    exchange.commit()
    state = exchange.state_dict()
    kept = torch.stack([state[f"{key}/residual"] for key in range(3)])
    total = given + 0
    dist.all_reduce(total)
    dist.all_reduce(kept)
    ranks = [int(torch.linalg.matrix_rank(flats[0][:2400].view(60, 40), rtol=1e-4))]
    exchange.close()
    return {"sent": sent, "kept": kept, "given": total, "ranks": ranks}


def test_it_adds_up_is_of_low_rank_and_exact_for_low_rank():
    for found in run_on_ranks(2, _body):
        whole = found.pop("whole")
        torch.testing.assert_close(whole["got"], whole["want"], rtol=1e-3, atol=1e-3)
        for values, one in found.items():
            total = one["sent"] + one["kept"]
            torch.testing.assert_close(total, one["given"], rtol=1e-3, atol=1e-3, msg=values)
            assert one["ranks"] == [2], values
