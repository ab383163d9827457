from dataclasses import replace

import pytest
import torch

from offload.activations.tensors import is_weight
from trainer.model.activation_size import block_cost, mean_cost
from trainer.model.blocks import DecoderBlock
from trainer.model.config import Architecture, MoeConfig
from trainer.model.packing import Packing
from trainer.model.rope import rotary
from trainer.model.stage_costs import layer_flops

TOKENS = 256
DENSE = Architecture(
    vocab_size=64,
    hidden_size=128,
    intermediate_size=352,
    num_layers=2,
    num_heads=8,
    num_kv_heads=4,
)
MOE = replace(
    DENSE,
    qk_norm=True,
    moe=MoeConfig(num_experts=8, top_k=2, expert_intermediate_size=96, shared_intermediate_size=64),
)


def cost(architecture, layer=0, *, tp=1, element_bytes=4, fused_norm=False):
    return block_cost(
        architecture,
        layer,
        tp=tp,
        element_bytes=element_bytes,
        fused_norm=fused_norm,
        context_tokens=TOKENS,
    )


def saved_bytes(architecture, dtype):
    """Bytes of all storages that one block saves, weights and shared angles left out."""
    torch.manual_seed(0)
    block = DecoderBlock(architecture, 0)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    angles = rotary(architecture, torch.arange(TOKENS), (TOKENS,))
    # The block's input always counts; some norms save a copy of it instead.
    x_TD = torch.randn(TOKENS, architecture.hidden_size, dtype=dtype).requires_grad_() * 1.0
    held, found = [], {x_TD.untyped_storage()._cdata: x_TD.untyped_storage().nbytes()}
    shared = {t.untyped_storage()._cdata for t in (angles.cos_Th, angles.sin_Th)}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if not is_weight(tensor) and storage._cdata not in shared:
            found[storage._cdata] = storage.nbytes()
            held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        block.to(dtype)(x_TD, angles, Packing(document_ends=(TOKENS,)))
    return sum(found.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("architecture", "bound"),
    [(DENSE, 0.03), (replace(DENSE, qk_norm=True), 0.03), (MOE, 0.05)],
    ids=["dense", "qk_norm", "moe"],
)
def test_the_bytes_are_those_that_a_block_saves(architecture, dtype, bound):
    predicted = cost(architecture, element_bytes=dtype.itemsize).bytes_of(TOKENS).total_bytes
    assert predicted == pytest.approx(saved_bytes(architecture, dtype), rel=bound)


def test_what_mixes_tokens_is_not_recomputed_token_by_token():
    dense, mixture = cost(DENSE), cost(MOE)
    assert mixture.attention_bytes > 4 * dense.attention_bytes
    assert mixture.tokenwise_flops < dense.tokenwise_flops < dense.flops


def test_a_tensor_axis_cuts_what_it_cuts_and_keeps_one_sum_more():
    whole, half = cost(DENSE), cost(DENSE, tp=2)
    assert half.input_bytes == whole.input_bytes
    assert half.other_bytes < whole.other_bytes
    assert half.attention_bytes == whole.attention_bytes / 2 + 4 * DENSE.hidden_size


def test_forward_flops_are_the_layers():
    for architecture in (DENSE, replace(MOE, qk_norm=False)):
        counted = layer_flops(architecture, TOKENS)[0]
        assert cost(architecture).flops == pytest.approx(counted, rel=0.02)


def test_the_mean_is_per_block():
    both = mean_cost([cost(DENSE), cost(MOE)])
    assert 2 * both.flops == cost(DENSE).flops + cost(MOE).flops
    assert 2 * both.other_bytes == cost(DENSE).other_bytes + cost(MOE).other_bytes
