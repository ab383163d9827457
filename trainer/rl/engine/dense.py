"""Decoder blocks as the engine runs them.

A forward of few rows costs as much for starting operations as for arithmetic. A dense block whose
weights are whole is therefore computed from its parameters in half the operations; every other
block runs as the module that it is. Both give the same up to rounding, which
tests/trainer/rl/engine/test_dense.py asserts for every kind of dense block.

T tokens, D model width, H query heads, K key and value heads, N = H + K, d head width, h its half.
"""

from collections.abc import Callable
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor

from parallel.attention import AttentionFn
from trainer.model.blocks import DecoderBlock, RmsNorm
from trainer.model.packing import Packing
from trainer.model.rope import Rotary
from trainer.model.swiglu import SwiGlu


class Turns:
    """Rotary angles, also in the shape in which both halves of a head turn at once."""

    def __init__(self, rotary: Rotary) -> None:
        self.rotary = rotary
        self.cos_T11h = rotary.cos_Th[:, None, None]
        self.sin_T12h = torch.stack((-rotary.sin_Th, rotary.sin_Th), dim=1)[:, None]


RunBlock = Callable[[Tensor, Turns, AttentionFn, Tensor | None], Tensor]
"""The residual stream [T, D] after a block, or only those of its rows that are named."""


def runner(block: DecoderBlock) -> RunBlock:
    """The fewest operations for this block."""
    whole = not any(isinstance(weight, DTensor) for weight in block.parameters())
    if whole and isinstance(block.mlp, SwiGlu):
        return _Dense(block, block.mlp)
    return _Module(block)


class _Module:
    def __init__(self, block: DecoderBlock) -> None:
        self._block = block

    def __call__(
        self, x_TD: Tensor, turns: Turns, attend: AttentionFn, rows: Tensor | None
    ) -> Tensor:
        packing = Packing(document_ends=(x_TD.shape[0],), attend=attend)
        x_TD = self._block(x_TD, turns.rotary, packing)[0]
        return x_TD if rows is None else x_TD.index_select(0, rows)


class _Dense:
    def __init__(self, block: DecoderBlock, mlp: SwiGlu) -> None:
        attention = block.self_attn
        self._attention = attention
        self._before, self._between = (
            Norm(block.input_layernorm),
            Norm(block.post_attention_layernorm),
        )
        self._width, self._window = attention.head_dim, attention.window
        self._qkv = [
            (layer.weight, layer.bias)
            for layer in (attention.q_proj, attention.k_proj, attention.v_proj)
        ]
        self._ends = list(accumulate(weight.shape[0] for weight, _ in self._qkv))
        self._out = attention.o_proj.weight
        self._gate, self._up = mlp.gate_proj.weight, mlp.up_proj.weight
        self._down = mlp.down_proj.weight

    def __call__(
        self, x_TD: Tensor, turns: Turns, attend: AttentionFn, rows: Tensor | None
    ) -> Tensor:
        mixed_TX = self._mixed(self._before(x_TD), turns, attend)
        if rows is not None:
            x_TD, mixed_TX = x_TD.index_select(0, rows), mixed_TX.index_select(0, rows)
        x_TD = torch.addmm(x_TD, mixed_TX, self._out.t())
        h_TD = self._between(x_TD)
        inner_TF = F.silu(F.linear(h_TD, self._gate), inplace=True)
        inner_TF.mul_(F.linear(h_TD, self._up))
        return x_TD.addmm_(inner_TF, self._down.t())

    def _mixed(self, h_TD: Tensor, turns: Turns, attend: AttentionFn) -> Tensor:
        width, (queries, keys, values) = self._width, self._ends
        tokens = h_TD.shape[0]
        qkv = h_TD.new_empty(tokens, values)
        for (weight, bias), place in zip(
            self._qkv, qkv.tensor_split(self._ends[:2], dim=1), strict=True
        ):
            # Each projection where it belongs: heads that turn together then lie together.
            if bias is None:
                torch.mm(h_TD, weight.t(), out=place)
            else:
                torch.addmm(bias, h_TD, weight.t(), out=place)
        turning = qkv[:, :keys]
        attention = self._attention
        if attention.q_norm is not None and attention.k_norm is not None:
            q, k = (
                qkv[:, :queries].unflatten(1, (-1, width)),
                qkv[:, queries:keys].unflatten(1, (-1, width)),
            )
            turning = torch.cat((attention.q_norm(q), attention.k_norm(k)), dim=1).to(h_TD.dtype)
        halves_TN2h = turning.view(tokens, -1, 2, width // 2).float()
        turned = torch.addcmul(halves_TN2h * turns.cos_T11h, halves_TN2h.flip(2), turns.sin_T12h)
        turned_TNd = turned.view(tokens, -1, width).to(h_TD.dtype)
        heads = queries // width
        out_THd = attend(
            turned_TNd[:, :heads],
            turned_TNd[:, heads:],
            qkv[:, keys:].view(tokens, -1, width),
            document_ends=(tokens,),
            window=self._window,
        )
        return out_THd.flatten(1)


class Norm:
    """An `RmsNorm` in the fewest operations where no kernel does it in one."""

    def __init__(self, norm: RmsNorm) -> None:
        self._norm, self._weight = norm, norm.weight
        assert norm.eps is not None
        self._eps = torch.tensor(norm.eps, device=norm.weight.device)

    def __call__(self, x_TD: Tensor) -> Tensor:
        """[T, D], in the dtype of `x_TD`."""
        if x_TD.is_cuda or x_TD.dtype != torch.float32:
            return self._norm(x_TD)
        size_T1 = torch.linalg.vector_norm(x_TD, dim=1, keepdim=True)
        scale_T1 = torch.addcmul(self._eps, size_T1, size_T1, value=1 / x_TD.shape[1]).rsqrt_()
        return (x_TD * scale_T1).mul_(self._weight)
