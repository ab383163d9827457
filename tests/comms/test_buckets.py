"""The guarantees of comms/buckets.py, one by one."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from comms.buckets import GradientBuckets
from comms.compression.config import CompressionConfig
from comms.compression.exchange import Exchange
from comms.ledger import Ledger
from comms.volume import all_reduce_bytes
from tests.ranks import run_on_ranks


class _Branches(nn.Module):
    """Odd sizes, and a branch that only some ranks take."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(7, 5, generator=generator))
        self.optional = nn.Parameter(torch.randn(3, 5, generator=generator))
        self.last = nn.Parameter(torch.randn(11, 7, generator=generator))

    def forward(self, x: torch.Tensor, *, branch: bool) -> torch.Tensor:
        out = (self.last @ (self.first @ x)).square().sum()
        return out + (self.optional @ x).sum() if branch else out


def _input(rank: int, number: int) -> torch.Tensor:
    return torch.randn(5, generator=torch.Generator().manual_seed(100 * rank + number))


def _train(rank: int, bucket_bytes: int, rounds: int) -> tuple[list[torch.Tensor], float, dict]:
    model, ledger = _Branches(), Ledger()
    gradients = GradientBuckets(
        list(model.parameters()),
        group=dist.group.WORLD,
        bucket_bytes=bucket_bytes,
        ledger=ledger,
    )
    for number in range(rounds):
        gradients.start_round(last=number == rounds - 1)
        model(_input(rank, number), branch=rank == 0).backward()
    gradients.finish()
    squared_norm = float(gradients.squared_norm())
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    gradients.zero()
    assert all(not p.grad.any() for p in model.parameters() if p.grad is not None)
    return grads, squared_norm, ledger.take()[0]


def _expected(ranks: int, rounds: int) -> list[torch.Tensor]:
    model = _Branches()
    for rank in range(ranks):
        for number in range(rounds):
            model(_input(rank, number), branch=rank == 0).backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize(
    ("ranks", "bucket_bytes", "rounds"), [(2, 1, 1), (3, 200, 2), (2, 10**6, 3)]
)
def test_gradients_are_sums_and_equal_on_all_ranks(ranks, bucket_bytes, rounds):
    results = run_on_ranks(ranks, _train, bucket_bytes, rounds)
    expected = _expected(ranks, rounds)
    for grads, squared_norm, _ in results:
        for got, same, want in zip(grads, results[0][0], expected, strict=True):
            assert torch.equal(got, same)
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
        assert squared_norm * len(results) == pytest.approx(
            sum(float(w.square().sum()) for w in expected), 1e-5
        )


def test_bytes_are_counted_once_per_step():
    results = run_on_ranks(2, _train, 10**6, 3)
    payload = 4 * sum(p.numel() for p in _Branches().parameters())
    assert results[0][2] == {"replica/all_reduce": all_reduce_bytes(payload, 2)}


def test_a_lone_rank_keeps_its_gradients():
    model, ledger = _Branches(), Ledger()
    gradients = GradientBuckets(
        list(model.parameters()), group=None, bucket_bytes=64, ledger=ledger
    )
    gradients.start_round(last=True)
    model(_input(0, 0), branch=True).backward()
    gradients.finish()
    for parameter, want in zip(model.parameters(), _expected(1, 1), strict=True):
        assert torch.equal(parameter.grad, want)
    gradients.scale(0.5)
    for parameter, want in zip(model.parameters(), _expected(1, 1), strict=True):
        assert torch.equal(parameter.grad, want * 0.5)
    assert ledger.take()[0] == {}


def _compressed(rank: int, method: str) -> tuple[list[torch.Tensor], dict[str, int]]:
    model, ledger = _Branches(), Ledger()
    config = CompressionConfig(method=method, dense_below=0, ratio=0.5)
    exchange = Exchange(config, group=dist.new_group(), ledger=ledger)
    gradients = GradientBuckets(
        list(model.parameters()),
        group=dist.group.WORLD,
        bucket_bytes=200,
        ledger=ledger,
        exchange=exchange,
    )
    for number in range(2):
        gradients.start_round(last=number == 1)
        model(_input(rank, number), branch=rank == 0).backward()
    gradients.finish()
    exchange.close()
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return grads, ledger.take()[0]


@pytest.mark.parametrize(("method", "bound"), [("none", 1e-5), ("quantized", 0.05)])
def test_an_exchange_may_sum_instead(method, bound):
    results = run_on_ranks(2, _compressed, method)
    expected = _expected(2, 2)
    # Blocks reach over parameters: errors are relative to the largest gradient of all.
    bound *= max(float(want.abs().max()) for want in expected)
    for got, same, want in zip(results[0][0], results[1][0], expected, strict=True):
        assert torch.equal(got, same)
        torch.testing.assert_close(got, want, rtol=0, atol=bound)
    assert ("replica/all_to_all" in results[0][1]) == (method == "quantized")
