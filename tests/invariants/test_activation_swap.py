"""Swapping activations changes no bit of the gradients of the decoder's own block.

Norms, projections, rotary angles and feed-forward are its token-wise parts, packed attention is
the other one.
"""

import pytest
import torch

from offload.activations.blocks import BlockParts, BlockSwap
from offload.activations.policy import KEEP, RECOMPUTE, ActivationPolicy
from parallel.attention import packed_attention
from tests.offload.activations.small import open_swap, same_bits, train
from trainer.model.blocks import DecoderBlock
from trainer.model.config import Architecture
from trainer.model.packing import Packing
from trainer.model.rope import Rotary, rotary

ENDS = (70, 95, 190)


def parts(block: DecoderBlock, angles: Rotary) -> BlockParts:
    mix = block.self_attn

    def pre(rows, x_TD):
        here = Rotary(cos_Th=angles.cos_Th[rows], sin_Th=angles.sin_Th[rows])
        h_TD = block.input_layernorm(x_TD)
        q, k, v = (
            project(h_TD).unflatten(-1, (-1, mix.head_dim))
            for project in (mix.q_proj, mix.k_proj, mix.v_proj)
        )
        return here.rotate(q), here.rotate(k), v

    def attention(q_THd, k_TKd, v_TKd):
        return packed_attention(q_THd, k_TKd, v_TKd, document_ends=ENDS, window=None)

    def post(rows, x_TD, a_THd):
        x_TD = x_TD + mix.o_proj(a_THd.flatten(1))
        return x_TD + block.mlp(block.post_attention_layernorm(x_TD))

    return BlockParts(pre=pre, attention=attention, post=post)


def decoder(dtype):
    torch.manual_seed(0)
    architecture = Architecture(
        vocab_size=64,
        hidden_size=48,
        intermediate_size=100,
        num_layers=4,
        num_heads=6,
        num_kv_heads=2,
    )
    blocks = torch.nn.ModuleList(DecoderBlock(architecture, i) for i in range(4)).to(dtype)
    positions_T = torch.cat([torch.arange(n) for n in (70, 25, 95)])
    return blocks, rotary(architecture, positions_T, ENDS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_of_the_decoders_block(tmp_path, dtype):
    x = torch.randn(190, 48).to(dtype)
    reference, angles = decoder(dtype)

    def plain():
        h = x
        for block in reference:
            h, _ = block(h, angles, Packing(document_ends=ENDS))
        return h.float().square().mean()

    expected = train(reference, plain)
    for policy in (
        KEEP,
        RECOMPUTE,
        *(ActivationPolicy(kind="swap", alpha=a, tier="disk") for a in (0.0, 0.4, 1.0)),
    ):
        with open_swap("disk", tmp_path) as swap:
            blocks, angles = decoder(dtype)
            runner = BlockSwap({"disk": swap}, num_blocks=4, policy=policy)

            def swapped(blocks=blocks, angles=angles, runner=runner):
                h = x
                for index, block in enumerate(blocks):
                    h = runner.run(index, h, parts(block, angles))
                return h.float().square().mean()

            assert same_bits(train(blocks, swapped), expected), policy
