"""The parts of a decoder block, free of any parallelism.

T tokens, D model width, H query heads, K key and value heads, d head width.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn

from offload.activations.blocks import BlockParts
from offload.activations.regions import Outputs, as_tuple
from trainer.model.config import Architecture
from trainer.model.moe import MoeFeedForward, MoeStats
from trainer.model.packing import Packing
from trainer.model.rope import Rotary
from trainer.model.swiglu import SwiGlu

RunParts: TypeAlias = Callable[[Tensor, BlockParts], Outputs]
"""Runs the parts of a block on its input, and keeps of them for backward what it likes."""


class RmsNorm(nn.RMSNorm):
    """Root-mean-square normalisation (arXiv 1910.07467); half precision is accumulated in fp32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__(width, eps=eps)


class Attention(nn.Module):
    """Grouped-query attention (arXiv 2305.13245) with rotary positions."""

    def __init__(self, architecture: Architecture, layer: int) -> None:
        super().__init__()
        a, head_dim = architecture, architecture.resolved_head_dim
        self.head_dim = head_dim
        self.window = a.sliding_window if layer >= a.sliding_window_from_layer else None
        self.q_proj = nn.Linear(a.hidden_size, a.num_heads * head_dim, bias=a.qkv_bias)
        self.k_proj = nn.Linear(a.hidden_size, a.num_kv_heads * head_dim, bias=a.qkv_bias)
        self.v_proj = nn.Linear(a.hidden_size, a.num_kv_heads * head_dim, bias=a.qkv_bias)
        self.o_proj = nn.Linear(a.num_heads * head_dim, a.hidden_size, bias=False)
        self.output_is_summed = False
        """Whether the output projection sends: running it again would have all ranks do so."""
        self.q_norm = RmsNorm(head_dim, a.rms_norm_eps) if a.qk_norm else None
        self.k_norm = RmsNorm(head_dim, a.rms_norm_eps) if a.qk_norm else None

    def forward(self, x_TD: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [T, H, d], keys and values [T, K, d]: each token alone."""
        q_THd = self.q_proj(x_TD).unflatten(-1, (-1, self.head_dim))
        k_TKd = self.k_proj(x_TD).unflatten(-1, (-1, self.head_dim))
        v_TKd = self.v_proj(x_TD).unflatten(-1, (-1, self.head_dim))
        if self.q_norm is not None and self.k_norm is not None:
            q_THd, k_TKd = self.q_norm(q_THd).to(v_TKd.dtype), self.k_norm(k_TKd).to(v_TKd.dtype)
        return rotary.rotate(q_THd), rotary.rotate(k_TKd), v_TKd

    def output(self, out_THd: Tensor) -> Tensor:
        """What attention adds to the residual stream: each token alone."""
        return self.o_proj(out_THd.flatten(1))

    # Outside compiled graphs: document ends differ from step to step, and a graph that looked at
    # them would be compiled anew for each set.
    @torch.compiler.disable
    def mix(self, q_THd: Tensor, k_TKd: Tensor, v_TKd: Tensor, packing: Packing) -> Tensor:
        """Mix tokens of the same document: [T, H, d]."""
        return packing.attend(
            q_THd, k_TKd, v_TKd, document_ends=packing.document_ends, window=self.window
        )


class DecoderBlock(nn.Module):
    """Attention and feed-forward, each normalised before and added after.

    The unit of sharding, recomputation and compilation.
    """

    def __init__(self, architecture: Architecture, layer: int) -> None:
        super().__init__()
        a = architecture
        self.input_layernorm = RmsNorm(a.hidden_size, a.rms_norm_eps)
        self.self_attn = Attention(a, layer)
        self.post_attention_layernorm = RmsNorm(a.hidden_size, a.rms_norm_eps)
        self.mlp: MoeFeedForward | SwiGlu
        if a.moe is not None and a.is_moe_layer(layer):
            self.mlp = MoeFeedForward(a.hidden_size, a.moe, a.experts_of(layer))
        else:
            self.mlp = SwiGlu(a.hidden_size, a.intermediate_size)

    def forward(
        self,
        x_TD: Tensor,
        rotary: Rotary,
        packing: Packing,
        run: RunParts | None = None,
    ) -> tuple[Tensor, MoeStats | None]:
        """The residual stream after this block, and the router's statistics if they are wanted.

        With `run` it is done part by part.
        """
        if run is not None:
            x_TD, *stats = as_tuple(run(x_TD, self._parts(rotary, packing)))
            return x_TD, MoeStats(*stats) if stats else None
        heads = self.self_attn(self.input_layernorm(x_TD), rotary)
        x_TD = x_TD + self.self_attn.output(self.self_attn.mix(*heads, packing))
        h_TD = self.post_attention_layernorm(x_TD)
        if isinstance(self.mlp, SwiGlu):
            return x_TD + self.mlp(h_TD), None
        y_TD, stats = self.mlp(h_TD, packing)
        return x_TD + y_TD, stats

    def _parts(self, rotary: Rotary, packing: Packing) -> BlockParts:
        """The block in three parts. What ranks do together is in the second, or at the end of the
        third, so that no part is run again that would need the others."""
        summed = self.self_attn.output_is_summed

        def pre(rows: slice, x_TD: Tensor) -> Outputs:
            return self.self_attn(self.input_layernorm(x_TD), rotary.of(rows))

        def attention(q_THd: Tensor, k_TKd: Tensor, v_TKd: Tensor) -> Tensor:
            mixed_THd = self.self_attn.mix(q_THd, k_TKd, v_TKd, packing)
            return self.self_attn.output(mixed_THd) if summed else mixed_THd

        def post(rows: slice, x_TD: Tensor, mixed: Tensor) -> Outputs:
            x_TD = x_TD + (mixed if summed else self.self_attn.output(mixed))
            h_TD = self.post_attention_layernorm(x_TD)
            if isinstance(self.mlp, SwiGlu):
                return x_TD + self.mlp(h_TD)
            y_TD, stats = self.mlp(h_TD, packing)
            return x_TD + y_TD if stats is None else (x_TD + y_TD, *stats)

        return BlockParts(
            pre=pre, attention=attention, post=post, split_post=isinstance(self.mlp, SwiGlu)
        )
