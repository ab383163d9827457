"""Variants of the mixture: capacity, residual, pyramid, narrow rows, experts that moved."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tests.trainer.model.batches import make_batch
from trainer.errors import RecipeError
from trainer.model.config import Architecture, MoeConfig
from trainer.model.hf_family import family_of
from trainer.model.moe import MoeFeedForward
from trainer.model.packing import Packing, sequence_weights
from trainer.model.size import active_parameter_count, parameter_count, parameter_shapes

WIDTH, TOKENS = 12, 28
MOE = MoeConfig(
    num_experts=6,
    top_k=2,
    expert_intermediate_size=10,
    shared_intermediate_size=8,
    aux_loss_weight=0.1,
)
NARROW = replace(MOE, dispatch_size=4)
RESIDUAL = replace(MOE, residual=True)
BOUNDED = replace(MOE, capacity_factor=0.5)
VARIANTS = [MOE, NARROW, RESIDUAL, BOUNDED, replace(NARROW, residual=True, capacity_factor=0.5)]


def make_moe(moe, num_experts=0):
    module = MoeFeedForward(WIDTH, moe, num_experts)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3, generator=generator)
    return module


def packing_of(sequences=((TOKENS,),)):
    batch = make_batch([list(lengths) for lengths in sequences], 50)
    return Packing(document_ends=batch.document_ends, sequences=sequence_weights(batch))


def hidden(tokens=TOKENS, seed=5):
    return torch.randn(tokens, WIDTH, generator=torch.Generator().manual_seed(seed))


def by_hand(module, x_TD, kept_Tk):
    """Every expert on every token, weighed and masked."""
    moe, routing = module.moe, module.gate(x_TD)
    h_TD = x_TD if module.descend is None else x_TD @ module.descend.weight.t()
    outputs = []
    for gate_up, down in zip(module.experts.gate_up_proj, module.experts.down_proj, strict=True):
        gate, up = (h_TD @ gate_up).chunk(2, dim=-1)
        outputs.append((F.silu(gate) * up) @ down)
    y_TkD = torch.stack(outputs, 1).gather(
        1, routing.experts_Tk.unsqueeze(-1).expand(-1, -1, h_TD.shape[1])
    )
    y_TD = (y_TkD * (routing.weights_Tk * kept_Tk).unsqueeze(-1)).sum(1)
    y_TD = y_TD if module.ascend is None else y_TD @ module.ascend.weight.t()
    shared_TD = module.shared_experts(x_TD)
    if not moe.residual:
        return y_TD + shared_TD
    linear = module.coefficients
    share_T2 = (x_TD @ linear.weight.t() + linear.bias).softmax(-1)
    return share_T2[:, :1] * y_TD + share_T2[:, 1:] * shared_TD


@pytest.mark.parametrize("moe", VARIANTS)
def test_outputs_and_gradients_are_those_by_hand(moe):
    module, x_TD = make_moe(moe), hidden().requires_grad_(True)
    packing = packing_of()
    y_TD, stats = module(x_TD, packing)
    kept_Tk = module._kept(module.gate(x_TD).experts_Tk, packing.sequences)
    kept_Tk = torch.ones(TOKENS, 2, dtype=torch.bool) if kept_Tk is None else kept_Tk
    wanted_TD = by_hand(module, x_TD, kept_Tk)
    torch.testing.assert_close(y_TD, wanted_TD, rtol=1e-4, atol=1e-5)
    assert stats.dropped.item() == (~kept_Tk).sum().item()
    inputs, upstream = [x_TD, *module.parameters()], hidden(seed=8)
    for got, want in zip(
        torch.autograd.grad(y_TD, inputs, upstream),
        torch.autograd.grad(wanted_TD, inputs, upstream),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_a_bounded_capacity_drops_what_is_beyond_it_and_counts_it_per_sequence():
    module = make_moe(BOUNDED)
    module.gate.expert_bias[3] = 10.0  # everybody's first choice
    x_TD = hidden(16 + 12)
    _, whole = module(x_TD, packing_of([[16], [9, -3]]))
    parts = [module(x_TD[:16], packing_of([[16]])), module(x_TD[16:], packing_of([[9, -3]]))]
    # Capacity of both: max(ceil(16 × 2 / 6 × 0.5), 4) = 4 rows of 16 and of 9 + 3.
    assert whole.dropped.item() >= (16 - 4) + (9 - 4)
    assert whole.dropped == parts[0][1].dropped + parts[1][1].dropped
    assert whole.load_E[3].item() == 16 + 9


def test_capacity_binds_neither_generation_nor_an_even_load():
    module, loose = make_moe(BOUNDED), make_moe(replace(MOE, capacity_factor=6.0))
    x_TD = hidden()
    free, _ = make_moe(MOE)(x_TD, packing_of())
    alone, none = module(x_TD, Packing(document_ends=(TOKENS,)))
    assert none is None
    assert torch.equal(alone, free)
    y_TD, stats = loose(x_TD, packing_of())
    assert stats.dropped.item() == 0
    assert torch.equal(y_TD, free)


@pytest.mark.parametrize("moe", VARIANTS)
def test_the_order_of_experts_makes_no_difference(moe):
    module, moved = make_moe(moe), make_moe(moe)
    slot_E = torch.tensor([4, 2, 5, 0, 1, 3])
    moved.experts.expert_slot.copy_(slot_E)
    with torch.no_grad():
        for name, stacked in moved.experts.named_parameters():
            stacked[slot_E] = module.experts.get_parameter(name)
    got, want = (m(hidden(), packing_of()) for m in (moved, module))
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1].load_E, want[1].load_E)
    assert torch.equal(got[1].aux, want[1].aux)
    got[0].sum().backward()
    want[0].sum().backward()
    for name, stacked in moved.experts.named_parameters():
        assert torch.equal(stacked.grad[slot_E], module.experts.get_parameter(name).grad)


PYRAMID = replace(MOE, num_experts=6, pyramid=(2, 4, 6), first_dense_layers=1)
ARCHITECTURE = Architecture(
    vocab_size=64, hidden_size=WIDTH, num_layers=4, num_heads=2, num_kv_heads=2, moe=PYRAMID
)


def test_a_pyramid_has_its_number_of_experts_in_each_layer():
    assert [ARCHITECTURE.experts_of(layer) for layer in range(4)] == [0, 2, 4, 6]
    shapes = parameter_shapes(ARCHITECTURE)
    assert [shapes[f"layers.{n}.mlp.experts.down_proj"][0] for n in (1, 2, 3)] == [2, 4, 6]
    flat = replace(ARCHITECTURE, moe=replace(PYRAMID, pyramid=()))
    one_expert = 3 * WIDTH * 10 + WIDTH  # and its row of the router
    assert parameter_count(flat) - parameter_count(ARCHITECTURE) == 6 * one_expert
    active = active_parameter_count(flat) - active_parameter_count(ARCHITECTURE)
    assert active == 6 * WIDTH


def test_the_load_of_a_smaller_layer_is_padded():
    module = make_moe(PYRAMID, num_experts=4)
    _, stats = module(hidden(), packing_of())
    assert stats.load_E.shape == (6,)
    assert stats.load_E[:4].sum() == 2 * TOKENS
    assert not stats.load_E[4:].any()


def test_narrow_rows_and_coefficients_are_counted():
    shapes = parameter_shapes(replace(ARCHITECTURE, moe=replace(NARROW, residual=True)))
    module = make_moe(replace(NARROW, residual=True))
    for name, parameter in module.named_parameters():
        assert shapes[f"layers.2.mlp.{name}"] == parameter.shape
    assert sum(name.startswith("layers.2.mlp.") for name in shapes) == len(
        list(module.parameters())
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pyramid": (2, 4)}, r"pyramid=\[2, 4\].*set num_experts to 4"),
        ({"pyramid": (1, 6)}, "top_k=2 is more than the 1 experts"),
        ({"residual": True, "shared_intermediate_size": 0}, "expert_intermediate_size=10"),
        ({"dispatch_size": -1}, "dispatch_size must be a width"),
        ({"capacity_factor": 0.0}, "capacity_factor must be positive"),
    ],
)
def test_contradictions_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(MOE, **changes)


def test_a_pyramid_must_name_every_mixture_layer():
    with pytest.raises(ValueError, match=r"names 3 layers, but 4 of the 4 are mixtures"):
        replace(ARCHITECTURE, moe=replace(PYRAMID, first_dense_layers=0))


@pytest.mark.parametrize(
    "changes",
    [
        {"pyramid": (2, 4, 6, 6)},
        {"residual": True, "shared_intermediate_size": 8},
        {"dispatch_size": 4},
        {"capacity_factor": 1.0},
    ],
)
def test_what_hugging_face_cannot_express_is_not_exported(changes):
    plain = replace(MOE, shared_intermediate_size=0)
    assert family_of(replace(ARCHITECTURE, moe=plain, qk_norm=True)) == "qwen3_moe"
    variant = replace(ARCHITECTURE, moe=replace(plain, **changes), qk_norm=True)
    with pytest.raises(RecipeError, match=r"model.moe\.\w+=.* has no counterpart"):
        family_of(variant)
