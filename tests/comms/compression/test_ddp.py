"""The guarantees of comms/compression/ddp.py, one by one."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from comms.compression.config import CompressionConfig
from comms.compression.ddp import DdpBuckets, ddp_hook
from comms.compression.exchange import Exchange
from tests.ranks import run_on_ranks

STEPS = 4


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Linear(40, 60), nn.Tanh(), nn.Linear(60, 60), nn.Tanh(), nn.Linear(60, 30))
    )


def _batch(rank: int, step: int) -> torch.Tensor:
    return torch.randn(8, 40, generator=torch.Generator().manual_seed(10 * step + rank))


def _loss(model: nn.Module, rank: int, step: int) -> torch.Tensor:
    return model(_batch(rank, step)).square().mean()


class _Run:
    """A DDP model that trains with compressed gradients."""

    def __init__(self, *, bucket_mb: float, **settings: object) -> None:
        config = CompressionConfig(dense_below=100, dense_steps=0, **settings)
        self.model = DistributedDataParallel(_model(), bucket_cap_mb=bucket_mb)
        self.buckets = DdpBuckets(Exchange(config, group=dist.new_group()), self.model.module)
        self.model.register_comm_hook(self.buckets, ddp_hook)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)

    def steps(self, rank: int, first: int, last: int) -> None:
        for step in range(first, last):
            self.optimizer.zero_grad()
            _loss(self.model, rank, step).backward()
            self.buckets.exchange.commit()
            self.optimizer.step()

    def parameters(self) -> list[torch.Tensor]:
        return [p.detach().clone() for p in self.model.module.parameters()]


def _train(rank: int, bucket_mb: float, settings: dict) -> list[torch.Tensor]:
    run = _Run(bucket_mb=bucket_mb, **settings)
    run.steps(rank, 0, STEPS)
    return run.parameters()


def _body(rank: int) -> dict[str, object]:
    low_rank = {"method": "powersgd", "rank": 2}
    found: dict[str, object] = {
        "dense": _train(rank, 0.005, {}),
        "many": _train(rank, 0.005, low_rank),
        "one": _train(rank, 25.0, low_rank),
        "quantized": _train(rank, 0.005, {"method": "quantized"}),
    }
    # Not a word of the whole is lost when buckets are cut anew, and state moves with parameters.
    run = _Run(bucket_mb=0.005, method="ef", ratio=0.05)
    run.steps(rank, 0, 1)
    first = {k: v.clone() for k, v in run.buckets.state_dict().items()}
    layout = dict(run.buckets._layout)
    run.steps(rank, 1, 3)
    found["rebuilt"] = layout != run.buckets._layout
    found["names"] = set(first) == set(run.buckets.state_dict())
    found["sizes"] = all(
        first[f"{name}/residual"].numel() == p.numel()
        for name, p in run.model.module.named_parameters()
    )
    found["moved"] = _moves(rank, first)
    return found


def _moves(rank: int, state: dict[str, torch.Tensor]) -> bool:
    """Whether a state loaded into another bucketing reaches every parameter."""
    run = _Run(bucket_mb=25.0, method="none")
    run.buckets.load_state_dict(state)
    run.optimizer.zero_grad()
    _loss(run.model, rank, 1).backward()
    plain = _model()
    _loss(plain, rank, 1).backward()
    same = True
    for (name, got), want in zip(
        run.model.module.named_parameters(), plain.parameters(), strict=True
    ):
        total = want.grad / 2 + state[f"{name}/residual"].view_as(want)
        dist.all_reduce(total)
        same = same and torch.allclose(got.grad, total, rtol=1e-4, atol=1e-6)
    return same


@pytest.fixture(scope="module")
def found() -> dict[str, object]:
    return run_on_ranks(2, _body)[0]


def test_gradients_are_averages(found):
    model = _model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(STEPS):
        optimizer.zero_grad()
        (sum(_loss(model, rank, step) for rank in range(2)) / 2).backward()
        optimizer.step()
    for got, want in zip(found["dense"], model.parameters(), strict=True):
        torch.testing.assert_close(got, want.detach(), rtol=1e-5, atol=1e-6)
    for got, want in zip(found["quantized"], model.parameters(), strict=True):
        torch.testing.assert_close(got, want.detach(), rtol=0.02, atol=1e-3)


def test_powersgd_is_right_with_any_number_of_buckets(found):
    for many, one, dense in zip(found["many"], found["one"], found["dense"], strict=True):
        # The first factors are random and differ by bucket: close, but not equal.
        torch.testing.assert_close(many, one, rtol=0.1, atol=0.03)
        torch.testing.assert_close(many, dense, rtol=0.1, atol=0.03)


def test_parameters_keep_their_state_when_buckets_change(found):
    assert found["rebuilt"]
    assert found["names"]
    assert found["sizes"]
    assert found["moved"]
