"""The guarantees of comms/compression/fsdp.py, one by one."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from comms.compression.config import CompressionConfig
from comms.compression.exchange import Exchange
from comms.compression.fsdp import compress_shards
from comms.ledger import Ledger
from tests.ranks import run_on_ranks

STEPS = 2


class _Blocks(nn.Module):
    """Odd sizes, so that shards are filled up."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(13, 31)
        self.second = nn.Linear(31, 30)
        self.head = nn.Linear(30, 7, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(x).tanh()).tanh())


def _loss(model: nn.Module, rank: int, step: int, number: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 * step + 10 * number + rank)
    return model(torch.randn(6, 13, generator=generator)).square().sum()


def _train(
    rank: int, rounds: int, average: bool, zero: bool, settings: dict
) -> tuple[list[torch.Tensor], dict[str, int]]:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replica", "shard"))
    model, ledger = _Blocks(), Ledger()
    for block in (model.first, model.second):
        fully_shard(block, mesh=mesh["shard"])
    fully_shard(model, mesh=mesh["shard"])
    config = CompressionConfig(dense_below=10, dense_steps=0, **settings)
    exchange = Exchange(config, group=mesh.get_group("replica"), ledger=ledger)
    hooks = compress_shards(model, exchange, average=average)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(STEPS):
        ledger.take()
        optimizer.zero_grad(set_to_none=zero)
        for number in range(rounds):
            hooks.start_round(last=number == rounds - 1)
            _loss(model, rank, step, number).backward()
            if number < rounds - 1:
                assert ledger.take()[0] == {}
        hooks.finish()
        sent = ledger.take()[0]
        exchange.commit()
        optimizer.step()
    exchange.close()
    return [p.full_tensor().detach() for p in model.parameters()], sent


CASES = {
    "one round": (1, False, True, {}),
    "three rounds": (3, False, True, {}),
    "zeroed in place": (2, False, False, {}),
    "averages": (2, True, True, {}),
    "int8": (2, False, True, {"method": "quantized"}),
    "powersgd": (1, False, True, {"method": "powersgd", "rank": 3}),
    "top_k": (1, False, True, {"method": "ef", "ratio": 0.5}),
}


def _body(rank: int) -> dict[str, object]:
    found = {name: _train(rank, *case) for name, case in CASES.items()}
    with pytest.raises(ValueError, match="call fully_shard first"):
        compress_shards(_Blocks(), Exchange(CompressionConfig(), group=dist.group.WORLD))
    return found


def _expected(rounds: int, average: bool) -> list[torch.Tensor]:
    model = _Blocks()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(STEPS):
        optimizer.zero_grad()
        for number in range(rounds):
            for rank in range(4):
                _loss(model, rank, step, number).backward()
        if average:
            for parameter in model.parameters():
                parameter.grad /= 4
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


@pytest.fixture(scope="module")
def results() -> list[dict[str, object]]:
    return run_on_ranks(4, _body)


@pytest.mark.parametrize("name", list(CASES))
def test_gradients_equal_those_of_one_process(results, name):
    rounds, average, _, settings = CASES[name]
    bound = 1e-5 if not settings else 0.05
    for result in results:
        for got, same, want in zip(
            result[name][0], results[0][name][0], _expected(rounds, average), strict=True
        ):
            assert torch.equal(got, same)
            torch.testing.assert_close(got, want, rtol=bound, atol=bound)


def test_shards_are_compressed_once_per_step(results):
    dense = sum(results[0]["three rounds"][1].values())
    assert 0 < sum(results[0]["int8"][1].values()) < dense
    assert results[0]["one round"][1] == results[0]["three rounds"][1]
