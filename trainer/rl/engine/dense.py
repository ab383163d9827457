"""Decoder blocks as the engine runs them.

A forward of few rows costs as much for starting operations as for arithmetic. A dense block whose
weights are whole is therefore computed from its parameters in half the operations; every other
block runs as the module that it is. Both give the same up to rounding, which
tests/trainer/rl/engine/test_dense.py asserts for every kind of dense block.

T tokens, D model width, H query heads, K key and value heads, N = H + K, d head width, h its half.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor

from parallel.attention import AttentionFn
from trainer.model.blocks import DecoderBlock
from trainer.model.packing import Packing
from trainer.model.rope import Rotary
from trainer.model.swiglu import SwiGlu


class Turns:
    """Rotary angles, also in the shape in which both halves of a head turn at once."""

    def __init__(self, rotary: Rotary) -> None:
        self.rotary = rotary
        self.cos_T11h = rotary.cos_Th[:, None, None]
        self.sin_T12h = torch.stack((-rotary.sin_Th, rotary.sin_Th), dim=1)[:, None]


RunBlock = Callable[[Tensor, Turns, AttentionFn], Tensor]
"""The residual stream [T, D] after a block."""


def runner(block: DecoderBlock) -> RunBlock:
    """The fewest operations for this block."""
    whole = not any(isinstance(weight, DTensor) for weight in block.parameters())
    if whole and isinstance(block.mlp, SwiGlu):
        return _Dense(block, block.mlp)
    return _Module(block)


class _Module:
    def __init__(self, block: DecoderBlock) -> None:
        self._block = block

    def __call__(self, x_TD: Tensor, turns: Turns, attend: AttentionFn) -> Tensor:
        packing = Packing(document_ends=(x_TD.shape[0],), attend=attend)
        return self._block(x_TD, turns.rotary, packing)[0]


class _Dense:
    def __init__(self, block: DecoderBlock, mlp: SwiGlu) -> None:
        self._block = block
        self._mlp = mlp

    def __call__(self, x_TD: Tensor, turns: Turns, attend: AttentionFn) -> Tensor:
        block, mlp = self._block, self._mlp
        attention = block.self_attn
        mixed_TX = self._mixed(block.input_layernorm(x_TD), turns, attend)
        x_TD = torch.addmm(x_TD, mixed_TX, attention.o_proj.weight.t())
        h_TD = block.post_attention_layernorm(x_TD)
        inner_TF = F.silu(F.linear(h_TD, mlp.gate_proj.weight))
        inner_TF = inner_TF.mul_(F.linear(h_TD, mlp.up_proj.weight))
        return torch.addmm(x_TD, inner_TF, mlp.down_proj.weight.t())

    def _mixed(self, h_TD: Tensor, turns: Turns, attend: AttentionFn) -> Tensor:
        attention = self._block.self_attn
        width = attention.head_dim
        q = F.linear(h_TD, attention.q_proj.weight, attention.q_proj.bias)
        k = F.linear(h_TD, attention.k_proj.weight, attention.k_proj.bias)
        v = F.linear(h_TD, attention.v_proj.weight, attention.v_proj.bias)
        v_TKd = v.view(v.shape[0], -1, width)
        if attention.q_norm is not None and attention.k_norm is not None:
            q = attention.q_norm(q.unflatten(1, (-1, width))).flatten(1).to(v.dtype)
            k = attention.k_norm(k.unflatten(1, (-1, width))).flatten(1).to(v.dtype)
        halves_TN2h = torch.cat((q, k), dim=1).view(v.shape[0], -1, 2, width // 2).float()
        turned = torch.addcmul(halves_TN2h * turns.cos_T11h, halves_TN2h.flip(2), turns.sin_T12h)
        turned_TNd = turned.view(v.shape[0], -1, width).to(v.dtype)
        heads = q.shape[1] // width
        out_THd = attend(
            turned_TNd[:, :heads],
            turned_TNd[:, heads:],
            v_TKd,
            document_ends=(v.shape[0],),
            window=attention.window,
        )
        return out_THd.flatten(1)
