"""Mixtures that `trainer/model/config.py` describes: their sizes, and what is refused."""

from dataclasses import replace

import pytest

from trainer.errors import RecipeError
from trainer.model.config import Architecture, MoeConfig
from trainer.model.hf_family import family_of
from trainer.model.moe import MoeFeedForward
from trainer.model.size import active_parameter_count, parameter_count, parameter_shapes

WIDTH = 12
MOE = MoeConfig(num_experts=6, top_k=2, expert_intermediate_size=10, shared_intermediate_size=8)
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


def test_narrow_rows_and_coefficients_are_counted():
    moe = replace(MOE, dispatch_size=4, residual=True)
    shapes = parameter_shapes(replace(ARCHITECTURE, moe=moe))
    module = MoeFeedForward(WIDTH, moe)
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
