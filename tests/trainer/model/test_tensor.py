from dataclasses import replace

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from comms.ledger import Ledger
from parallel.tensor.layers import tensor_copies
from tests.ranks import run_on_ranks
from tests.trainer.model.batches import make_batch
from trainer.model.config import Architecture, MoeConfig
from trainer.model.decoder import Decoder
from trainer.model.init import init_weights
from trainer.model.tensor import split_decoder
from trainer.model.tensor_costs import tensor_bytes

DENSE = Architecture(
    vocab_size=64,
    hidden_size=24,
    num_layers=2,
    num_heads=8,
    num_kv_heads=4,
    head_dim=6,
    intermediate_size=44,
    qkv_bias=True,
    init_std=0.2,
)
MIXTURE = replace(
    DENSE,
    qkv_bias=False,
    qk_norm=True,
    tie_embeddings=True,
    moe=MoeConfig(
        num_experts=5,
        top_k=2,
        expert_intermediate_size=12,
        shared_intermediate_size=8,
        scoring="sigmoid",
        aux_loss_weight=0.1,
        z_loss_weight=0.01,
        first_dense_layers=1,
    ),
)
NAMED = {"dense": DENSE, "mixture": MIXTURE}
SEQUENCES = [[7, 5], [3, -9], [12]]
TOKENS = 36
CHUNK_TOKENS = 10


def meta_model(architecture):
    with torch.device("meta"):
        model = Decoder(architecture)
    model.loss_chunk_tokens = CHUNK_TOKENS
    return model


def filled(model):
    model.to_empty(device="cpu")
    init_weights(model, 3)
    with torch.no_grad():
        # Norms and biases start alike everywhere; here each element is its own.
        for name, parameter in model.named_parameters():
            if name.endswith(("norm.weight", ".bias")):
                whole = 1.0 + 0.1 * torch.sin(torch.arange(float(parameter.shape[0])))
                place(parameter, whole)
    return model


def place(parameter, whole):
    if not isinstance(parameter, DTensor):
        parameter.copy_(whole)
        return
    mesh, placements = parameter.device_mesh, parameter.placements
    replicated = DTensor.from_local(whole, mesh, run_check=False)
    parameter.copy_(replicated.redistribute(mesh, placements))


def full(tensor):
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def step(model):
    """Losses and whole gradients of one batch."""
    parts = model(make_batch(SEQUENCES, 64))
    (parts.loss_sum + parts.aux_sum).backward()
    return {
        "losses": (parts.loss_sum.detach(), parts.aux_sum.detach()),
        "load": parts.expert_load,
        "grads": {name: full(p.grad) for name, p in model.named_parameters()},
    }


def one_rank(architecture):
    model = filled(meta_model(architecture))
    return {
        **step(model),
        "weights": {name: p.detach() for name, p in model.named_parameters()},
        "logits": logits(model),
    }


@torch.no_grad()
def logits(model):
    batch = make_batch([[9]], 64)
    given = (batch.tokens_T, batch.positions_T, batch.document_ends)
    return model.logits(*given), model.logits(*given, last_only=True)


def split_case(mesh, architecture, *, recompute):
    ledger = Ledger()
    model = meta_model(architecture)
    axis = split_decoder(model, mesh, ledger)
    filled(model)
    model.recompute = recompute
    ledger.take()
    stepped = step(model)
    sent, _ = ledger.take()
    return {
        **stepped,
        "weights": {name: full(p) for name, p in model.named_parameters()},
        "sent": sent,
        "logits": logits(model),
        "copies": tensor_copies(model, axis),
        "squares": squares(model, tensor_copies(model, axis)),
    }


def squares(model, copies):
    """This rank's share of the squared norm of all gradients."""
    return sum(
        float((p.grad.to_local() if isinstance(p.grad, DTensor) else p.grad).square().sum())
        / copies[name]
        for name, p in model.named_parameters()
    )


def on_the_axis(rank, ranks):
    mesh = init_device_mesh("cpu", (ranks,), mesh_dim_names=("tp",))
    return {
        (name, recompute): split_case(mesh, architecture, recompute=recompute)
        for name, architecture in NAMED.items()
        for recompute in (False, True)
    }


def refusals(rank):
    """What a model says that cannot be split, and whether compiled blocks do as plain ones."""
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("tp",))
    stray = meta_model(DENSE)
    stray.layers[1].scale = torch.nn.Parameter(torch.ones(3, device="meta"))
    with pytest.raises(ValueError, match=r"layers\.1\.scale.*tp to 1"):
        split_decoder(stray, mesh, Ledger())
    odd = replace(DENSE, num_heads=9, num_kv_heads=3)
    with pytest.raises(ValueError, match=r"num_kv_heads=3.*among \[1\]"):
        split_decoder(meta_model(odd), mesh, Ledger())
    plain, compiled = (compiled_step(mesh, compile_blocks=c) for c in (False, True))
    return plain, compiled


def compiled_step(mesh, *, compile_blocks):
    architecture = replace(DENSE, num_layers=1)
    ledger, model = Ledger(), meta_model(architecture)
    split_decoder(model, mesh, ledger)
    if compile_blocks:
        for block in model.layers:
            block.compile(backend="eager")
    filled(model)
    return {**step(model), "sent": ledger.take()[0]}


def test_what_is_not_known_is_refused_and_compiled_blocks_count_alike():
    for plain, compiled in run_on_ranks(2, refusals):
        assert compiled["sent"] == plain["sent"]
        torch.testing.assert_close(compiled["losses"], plain["losses"], rtol=1e-6, atol=0)
        for name, grad in plain["grads"].items():
            torch.testing.assert_close(compiled["grads"][name], grad, rtol=1e-4, atol=1e-5)


def with_fsdp(rank):
    """tp inside, FSDP2 outside, of sizes that the shards do not divide."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("shard", "tp"))
    found = {}
    for name, architecture in NAMED.items():
        model = meta_model(architecture)
        axis = split_decoder(model, mesh["tp"], Ledger())
        for block in model.layers:
            fully_shard(block, mesh=mesh["shard"])
        fully_shard(model, mesh=mesh["shard"])
        register_fsdp_forward_method(model, "logits")
        for module in (model, *model.layers):
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(2.0)
        filled(model)
        found[name, False] = {
            "weights": {name: full(p) for name, p in model.named_parameters()},
            **step(model),
            "squares": squares(model, tensor_copies(model, axis)),
            "logits": logits(model),
        }
    return found


@pytest.fixture(scope="module")
def wanted():
    return {name: one_rank(architecture) for name, architecture in NAMED.items()}


@pytest.fixture(scope="module", params=[2, 4, "fsdp"])
def on_ranks(request):
    if request.param == "fsdp":
        return run_on_ranks(4, with_fsdp)
    return run_on_ranks(request.param, on_the_axis, request.param)


def test_losses_and_gradients_are_those_of_one_rank(on_ranks, wanted):
    for result in on_ranks:
        for (name, _), found in result.items():
            torch.testing.assert_close(found["losses"], wanted[name]["losses"], rtol=1e-5, atol=0)
            assert torch.equal(found["load"], wanted[name]["load"])
            for parameter, grad in wanted[name]["grads"].items():
                bound = 1e-5 * float(grad.abs().max())
                torch.testing.assert_close(found["grads"][parameter], grad, rtol=1e-4, atol=bound)


def test_all_ranks_start_from_the_weights_of_one(on_ranks, wanted):
    for result in on_ranks:
        for (name, _), found in result.items():
            assert list(found["weights"]) == list(wanted[name]["weights"])
            for parameter, weight in wanted[name]["weights"].items():
                assert torch.equal(found["weights"][parameter], weight)


def test_losses_and_gradients_are_bitwise_the_same_on_all_ranks(on_ranks):
    first = on_ranks[0]
    for result in on_ranks[1:]:
        for case, found in result.items():
            assert found["losses"] == first[case]["losses"]
            for parameter, grad in found["grads"].items():
                assert torch.equal(grad, first[case]["grads"][parameter])


def test_logits_are_those_of_one_rank(on_ranks, wanted):
    for result in on_ranks:
        for (name, _), found in result.items():
            torch.testing.assert_close(
                found["logits"], wanted[name]["logits"], rtol=1e-4, atol=1e-5
            )


def test_squared_norms_sum_to_that_of_one_rank(on_ranks, wanted):
    for case in on_ranks[0]:
        total = sum(result[case]["squares"] for result in on_ranks)
        grads = wanted[case[0]]["grads"].values()
        assert total == pytest.approx(sum(float(g.square().sum()) for g in grads), rel=1e-4)


def test_recomputation_changes_no_bit(on_ranks):
    for result in on_ranks:
        for (name, recompute), found in result.items():
            if recompute:
                kept = result[name, False]
                assert found["losses"] == kept["losses"]
                assert all(torch.equal(found["grads"][n], g) for n, g in kept["grads"].items())


def test_bytes_are_those_of_the_formula(on_ranks):
    for result in on_ranks:
        for (name, recompute), found in result.items():
            if "sent" not in found:
                continue
            formula = tensor_bytes(
                NAMED[name],
                tokens=TOKENS,
                tp=len(on_ranks),
                activation_bytes=4,
                loss_chunk_tokens=CHUNK_TOKENS,
                recompute=recompute,
            )
            assert found["sent"] == {f"tp/{key}": value for key, value in formula.items()}
