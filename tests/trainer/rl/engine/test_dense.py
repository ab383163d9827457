from dataclasses import replace

import pytest
import torch

from parallel.attention import packed_attention
from trainer.model.config import Architecture, MoeConfig, RopeScaling
from trainer.model.decoder import Decoder
from trainer.model.init import init_weights
from trainer.model.packing import Packing
from trainer.model.rope import rotary
from trainer.rl.engine.dense import Turns, runner

PLAIN = Architecture(
    vocab_size=32,
    hidden_size=32,
    num_layers=1,
    num_heads=4,
    num_kv_heads=2,
    intermediate_size=40,
    init_std=0.3,
)
KINDS = {
    "plain": PLAIN,
    "bias": replace(PLAIN, qkv_bias=True, num_kv_heads=4),
    "qk norm": replace(PLAIN, qk_norm=True, head_dim=6),
    "window": replace(PLAIN, sliding_window=2),
    "yarn": replace(PLAIN, rope_scaling=RopeScaling(kind="yarn", factor=4.0)),
    "moe": replace(PLAIN, moe=MoeConfig(num_experts=4, expert_intermediate_size=9)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [None, torch.tensor([2, 3, 10])])
@torch.no_grad()
def test_a_block_gives_what_its_modules_give(kind, dtype, rows):
    model = Decoder(KINDS[kind])
    init_weights(model, 2)
    model = model.to(dtype)
    (block,) = model.layers
    for name, parameter in block.named_parameters():
        if "norm" in name or "bias" in name:
            parameter.copy_(torch.rand(parameter.shape))
    x_TD = torch.randn(11, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    angles = rotary(KINDS[kind], torch.arange(11), (11,))
    expected, _ = block(x_TD, angles, Packing(document_ends=(11,)))
    if rows is not None:
        expected = expected[rows]
    found = runner(block)(x_TD, Turns(angles), packed_attention, rows)
    bound = 1e-5 if dtype == torch.float32 else 0.03
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected, rtol=bound, atol=bound)
