"""The decoder under FSDP2: the same losses and gradients as one process."""

from dataclasses import replace

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)

from tests.ranks import run_on_ranks
from tests.trainer.model.batches import make_batch, sequence_of
from trainer.generate import generate
from trainer.model.config import Architecture, MoeConfig
from trainer.model.decoder import Decoder
from trainer.model.init import init_weights

# Odd sizes, so that no dim divides by the number of ranks.
UNTIED = Architecture(
    vocab_size=61,
    hidden_size=21,
    num_layers=3,
    num_heads=3,
    num_kv_heads=1,
    head_dim=6,
    intermediate_size=33,
    qk_norm=True,
    init_std=0.2,
    moe=MoeConfig(
        num_experts=5,
        expert_intermediate_size=11,
        shared_intermediate_size=7,
        z_loss_weight=0.01,
        first_dense_layers=1,
    ),
)
ARCHITECTURES = [UNTIED, replace(UNTIED, tie_embeddings=True, moe=None)]
CASES = [
    *(
        (architecture, again, torch.float32)
        for architecture in ARCHITECTURES
        for again in (False, True)
    ),
    *((architecture, True, torch.bfloat16) for architecture in ARCHITECTURES),
]
BATCH = make_batch([[7, 5], [12], [3, -9], [2, 2, 8]], 61)
PADDING = make_batch([[-12]], 61)
GREEDY = {"temperature": 0.0, "top_p": 1.0, "seed": 0, "eos_id": None, "context": 20}


def step(model, batches):
    sums = torch.zeros(2)
    for batch in batches:
        parts = model(batch)
        (parts.loss_sum + parts.aux_sum).backward()
        sums += torch.stack([parts.loss_sum.detach(), parts.aux_sum.detach()])
    return sums


def make_model(architecture):
    with torch.device("meta"):
        return Decoder(architecture)


def sharded_model(architecture, mesh, policy):
    model = make_model(architecture)
    for block in model.layers:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    register_fsdp_forward_method(model, "logits")
    for module in (model, *model.layers):
        module.set_force_sum_reduction_for_comms(True)
        module.set_gradient_divide_factor(1.0)
    model.to_empty(device="cpu")
    init_weights(model, 3)
    return model


def sharded(rank):
    mesh = init_device_mesh("cpu", (2,))
    # The second rank has only padding in its last rounds.
    mine = [0, 1, 2] if rank == 0 else [3]
    batches = [sequence_of(BATCH, i) for i in mine] + [PADDING] * (3 - len(mine))
    found = []
    for architecture, recompute, dtype in CASES:
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
        model = sharded_model(architecture, mesh, policy)
        model.recompute = recompute
        sums = step(model, batches)
        torch.distributed.all_reduce(sums)
        gradients = {n: p.grad.full_tensor() for n, p in model.named_parameters()}
        text = list(generate(model, [1, 2, 3], max_new_tokens=5, **GREEDY))
        found.append((sums, gradients, text))
    return found


def alone(architecture):
    model = make_model(architecture).to_empty(device="cpu")
    init_weights(model, 3)
    sums = step(model, [BATCH])
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return sums, gradients, list(generate(model, [1, 2, 3], max_new_tokens=5, **GREEDY))


@pytest.fixture(scope="module")
def outcomes():
    return run_on_ranks(2, sharded)


@pytest.mark.parametrize("case", range(4), ids=["moe", "moe-recompute", "tied", "tied-recompute"])
def test_two_uneven_shards_give_the_losses_and_gradients_of_one_process(outcomes, case):
    wanted_sums, wanted, wanted_text = alone(CASES[case][0])
    for rank in range(2):
        sums, gradients, text = outcomes[rank][case]
        torch.testing.assert_close(sums, wanted_sums, rtol=1e-6, atol=1e-6)
        assert gradients.keys() == wanted.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-5, msg=name)
        assert text == wanted_text


@pytest.mark.parametrize("case", [4, 5], ids=["moe", "tied"])
def test_gathering_in_bf16_stays_within_its_rounding(outcomes, case):
    wanted_sums, wanted, _ = alone(CASES[case][0])
    sums, gradients, _ = outcomes[0][case]
    torch.testing.assert_close(sums, wanted_sums, rtol=0.02, atol=1e-6)
    for name, gradient in gradients.items():
        assert gradient.dtype == torch.float32
        assert (gradient - wanted[name]).norm() < 0.08 * wanted[name].norm(), name
