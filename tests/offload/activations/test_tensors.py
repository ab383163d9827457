import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from offload.activations.tensors import is_weight
from tests.ranks import run_on_ranks


def saved(work):
    """Whether each tensor that `work` saves is a weight."""
    found = []

    def pack(tensor):
        found.append(is_weight(tensor))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        work()
    return sorted(found)


def test_weights_and_their_views_are_known():
    weight, x = nn.Parameter(torch.randn(8, 8)), torch.randn(4, 8, requires_grad=True) * 1.0
    assert saved(lambda: F.linear(x, weight)) == [False, True]
    assert saved(lambda: x @ weight.t()[:, :4]) == [False, True]
    assert saved(lambda: x @ (weight * 2.0)) == [False, False]


def _local_parts(rank):
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("tp",))
    whole = distribute_tensor(torch.randn(8, 8), mesh, [Shard(0)])
    weight, x = nn.Parameter(whole), torch.randn(4, 8, requires_grad=True) * 1.0
    return (
        saved(lambda: F.linear(x, weight.to_local())),
        saved(lambda: x @ weight.to_local().t()),
        saved(lambda: x @ (weight.to_local() * 2.0).t()),
    )


@pytest.mark.timeout(60)
def test_local_parts_of_distributed_weights_are_known():
    for found in run_on_ranks(2, _local_parts):
        assert found == ([False, True], [False, True], [False, False])
