"""Swapping activations changes no bit of the gradients of the decoder."""

from dataclasses import replace

import pytest
import torch

from offload.activations.blocks import BlockSwap
from offload.activations.policy import KEEP, RECOMPUTE, SELECTIVE, ActivationPolicy
from tests.offload.activations.small import open_swap, same_bits, train
from tests.trainer.model.batches import make_batch
from trainer.model.config import Architecture, MoeConfig
from trainer.model.decoder import Decoder
from trainer.model.init import init_weights

DENSE = Architecture(
    vocab_size=64,
    hidden_size=48,
    intermediate_size=100,
    num_layers=4,
    num_heads=6,
    num_kv_heads=2,
)
MOE = replace(
    DENSE,
    qk_norm=True,
    moe=MoeConfig(
        num_experts=5,
        top_k=2,
        expert_intermediate_size=24,
        shared_intermediate_size=16,
        aux_loss_weight=0.02,
        first_dense_layers=2,
    ),
)


def decoder(architecture, dtype):
    model = Decoder(architecture)
    init_weights(model, 0)
    return model.to(dtype)


@pytest.mark.parametrize("architecture", [DENSE, MOE], ids=["dense", "moe"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_of_the_decoder(tmp_path, architecture, dtype):
    batch = make_batch([[70, 25, 95]], 64)

    def losses(model):
        parts = model(batch)
        return (parts.loss_sum + parts.aux_sum) / 100

    reference = decoder(architecture, dtype)
    expected = train(reference, lambda: losses(reference))
    for policy in (
        KEEP,
        RECOMPUTE,
        SELECTIVE,
        *(ActivationPolicy(kind="swap", alpha=a, tier="disk") for a in (0.0, 0.4, 1.0)),
    ):
        with open_swap("disk", tmp_path) as swap:
            model = decoder(architecture, dtype)
            model.swap = BlockSwap({"disk": swap}, num_blocks=4, policy=policy)
            assert same_bits(train(model, lambda model=model: losses(model)), expected), policy
