import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from offload.optimizer import InterleavedAdamW
from offload.weights import Weights
from tests.ranks import run_on_ranks


def test_parameters_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"parameter 0 is torch.float64"):
        Weights([nn.Parameter(torch.zeros(3, dtype=torch.float64))])
    with pytest.raises(ValueError, match=r"parameter 1 of shape \(2, 3\) is not contiguous"):
        Weights([nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(3, 2).T)])
    with pytest.raises(ValueError, match="live on one device"):
        Weights([nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1, device="meta"))])


def test_the_master_is_the_weight_only_in_fp32():
    weights = Weights([nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2).bfloat16())])
    assert [weights.is_master(0), weights.is_master(1)] == [True, False]


def _train_sharded(rank, kind):
    torch.manual_seed(0)
    # Five rows over two ranks: one has three, the other two; the bias of one is on rank 0 alone.
    model = nn.Sequential(nn.Linear(19, 5), nn.Tanh(), nn.Linear(5, 1))
    mesh = init_device_mesh("cpu", (2,))
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    if kind == "torch":
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    else:
        optimizer = InterleavedAdamW(model.parameters(), lr=1e-2, subgroup_parameters=1024)
    generator = torch.Generator().manual_seed(rank)
    for _ in range(4):
        for _ in range(2):
            model(torch.randn(4, 19, generator=generator)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    entry = optimizer.state_dict()["state"][0]["exp_avg"]
    assert isinstance(entry, DTensor)
    found = [p.full_tensor().detach() for p in model.parameters()]
    return [*found, entry.full_tensor()]


def _both(rank):
    return _train_sharded(rank, "torch"), _train_sharded(rank, "ours")


def test_fsdp2_shards_get_the_bits_of_adamw():
    for theirs, ours in run_on_ranks(2, _both):
        assert all(torch.equal(a, b) for a, b in zip(theirs, ours, strict=True))
