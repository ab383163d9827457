import math
from dataclasses import replace

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from tests.ranks import run_on_ranks
from trainer.model.config import Architecture, MoeConfig
from trainer.model.decoder import Decoder
from trainer.model.init import init_weights, normal_region

ARCHITECTURE = Architecture(
    vocab_size=101,
    hidden_size=48,
    num_layers=2,
    num_heads=3,
    num_kv_heads=1,
    head_dim=10,
    intermediate_size=77,
    qkv_bias=True,
    qk_norm=False,
    moe=MoeConfig(num_experts=5, expert_intermediate_size=31, first_dense_layers=1),
)


def meta_model(architecture=ARCHITECTURE):
    with torch.device("meta"):
        return Decoder(architecture)


def initialised(seed=3, architecture=ARCHITECTURE):
    model = meta_model(architecture).to_empty(device="cpu")
    init_weights(model, seed)
    return model.state_dict()


def full_weights(rank, shard, replica):
    """All parameters, of a model sharded by FSDP2."""
    mesh = init_device_mesh("cpu", (replica, shard), mesh_dim_names=("replica", "shard"))
    model = meta_model()
    for block in model.layers:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model.to_empty(device="cpu")
    init_weights(model, 3)
    return {name: p.full_tensor().detach() for name, p in model.named_parameters()}


def weights_of_any_placement(rank, ranks):
    """One stacked parameter, spread over the ranks in every way."""
    mesh = init_device_mesh("cpu", (ranks,))
    found = []
    for placement in (Shard(1), Shard(2), Replicate()):
        model = meta_model().to_empty(device="cpu")
        experts = model.layers[1].mlp.experts
        spread = distribute_tensor(experts.gate_up_proj.data, mesh, [placement])
        experts.gate_up_proj = torch.nn.Parameter(spread)
        init_weights(model, 3)
        found.append(experts.gate_up_proj.full_tensor().detach())
    return found


def three_ways(rank):
    return full_weights(rank, 3, 1), weights_of_any_placement(rank, 3)


def test_ranks_start_from_bitwise_the_same_weights_as_one():
    wanted = initialised()
    for sharded, placed in run_on_ranks(3, three_ways):
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in sharded.items())
        stacked = wanted["layers.1.mlp.experts.gate_up_proj"]
        assert all(torch.equal(tensor, stacked) for tensor in placed)


def test_replicas_of_shards_start_from_bitwise_the_same_weights():
    wanted = initialised()
    for sharded in run_on_ranks(4, full_weights, 2, 2):
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in sharded.items())


def test_an_element_depends_on_seed_name_and_place_alone():
    shape, region = (5000, 40), (slice(1700, 3300), slice(3, 9))
    whole = normal_region("w", shape, (slice(0, 5000), slice(0, 40)), 1)
    assert torch.equal(normal_region("w", shape, region, 1), whole[region])
    assert not torch.equal(normal_region("v", shape, region, 1), whole[region])
    assert not torch.equal(normal_region("w", shape, region, 2), whole[region])


def test_a_rank_draws_only_the_chunks_it_overlaps(monkeypatch):
    drawn = []
    randn = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *a, **k: drawn.append(a[0]) or randn(*a, **k))
    normal_region("w", (1_000_000, 64), (slice(500_000, 500_010), slice(0, 64)), 1)
    assert sum(drawn) <= 2048


def test_scales_of_norms_biases_and_matrices():
    architecture = replace(ARCHITECTURE, hidden_size=200, init_std=0.05)
    for name, tensor in initialised(architecture=architecture).items():
        if name.endswith("norm.weight"):
            assert (tensor == 1).all(), name
        elif name.endswith("bias"):
            assert (tensor == 0).all(), name
        elif name.endswith("expert_slot"):
            assert torch.equal(tensor, torch.arange(tensor.numel())), name
        else:
            residual = "o_proj" in name or "down_proj" in name
            wanted = 0.05 / math.sqrt(4) if residual else 0.05
            assert tensor.std().item() == pytest.approx(wanted, rel=0.1), name
            assert abs(tensor.mean().item()) < 5 * wanted / math.sqrt(tensor.numel()), name


def test_seeds_and_tensors_are_independent():
    first, second = initialised(1), initialised(2)
    name = "layers.0.self_attn.q_proj.weight"
    assert not torch.equal(first[name], second[name])
    assert torch.equal(first[name], initialised(1)[name])
    assert not torch.equal(first["embed_tokens.weight"], first["lm_head.weight"])
