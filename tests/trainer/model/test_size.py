from dataclasses import replace

import pytest
import torch

from trainer.model.config import Architecture, MoeConfig
from trainer.model.decoder import Decoder
from trainer.model.size import (
    active_parameter_count,
    flops_per_token,
    parameter_count,
    parameter_shapes,
)

DENSE = Architecture(
    vocab_size=320, hidden_size=64, num_layers=3, num_heads=4, num_kv_heads=2, intermediate_size=96
)
MOE = replace(
    DENSE,
    qk_norm=True,
    tie_embeddings=True,
    moe=MoeConfig(
        num_experts=6,
        top_k=2,
        expert_intermediate_size=40,
        shared_intermediate_size=24,
        first_dense_layers=1,
    ),
)
VARIANTS = replace(
    MOE, moe=replace(MOE.moe, pyramid=(4, 6), residual=True, dispatch_size=16, capacity_factor=1.0)
)
ARCHITECTURES = [DENSE, replace(DENSE, qkv_bias=True, head_dim=32), MOE]


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, VARIANTS])
def test_shapes_are_those_of_the_module(architecture):
    with torch.device("meta"):
        model = Decoder(architecture)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert parameter_shapes(architecture) == shapes
    assert parameter_count(architecture) == sum(p.numel() for p in model.parameters())


def test_another_vocabulary_changes_the_embeddings_alone():
    assert parameter_count(DENSE, 1000) - parameter_count(DENSE) == 2 * 64 * (1000 - 320)
    assert parameter_count(MOE, 1000) - parameter_count(MOE) == 64 * (1000 - 320)


def test_a_token_passes_only_the_chosen_experts():
    assert active_parameter_count(DENSE) == parameter_count(DENSE)
    one_expert = 3 * 64 * 40
    assert parameter_count(MOE) - active_parameter_count(MOE) == 2 * (6 - 2) * one_expert


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_flops_are_those_that_torch_counts(architecture):
    tokens = 64
    with torch.device("meta"):
        model = Decoder(architecture)
    counted = 0
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            counted += 2 * module.weight.numel()
    if architecture.tie_embeddings:
        counted += 2 * model.embed_tokens.weight.numel()
    if architecture.moe is not None:
        counted += 2 * 2 * (6 * 64 + 2 * 3 * 64 * 40)
    attention = 4 * architecture.num_heads * architecture.resolved_head_dim * tokens / 2 * 3
    small = sum(p.numel() for p in model.parameters() if p.ndim == 1)
    got = flops_per_token(architecture, 0, tokens)
    assert got == pytest.approx(3 * (counted + attention + 2 * small), rel=1e-9)


def test_a_window_caps_the_cost_of_attention():
    windowed = replace(DENSE, sliding_window=16)
    per_key = 3 * 4 * 64 * 3
    growth = flops_per_token(windowed, 0, 100_000) - flops_per_token(windowed, 0, 16)
    assert growth == pytest.approx(per_key * 8, rel=1e-3)
    assert flops_per_token(windowed, 0, 16) == flops_per_token(DENSE, 0, 16)
