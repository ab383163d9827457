"""Pure: what a decoder block saves for its backward, and what computing it again costs.

Guarantee, asserted in tests/trainer/model/test_activation_size.py: the bytes are those that a block
saves, each storage once, within 3 % for dense blocks and 5 % for blocks with experts.
"""

from dataclasses import dataclass

from offload.activations.amount import BlockBytes
from trainer.model.config import Architecture, MoeConfig

_FP32_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class BlockCost:
    """Of one decoder block and one token, as a rank of a tensor axis holds it."""

    input_bytes: float
    attention_bytes: float
    """Attention output, and all that a swap moves whole."""

    other_bytes: float
    """What can be recomputed token by token."""

    flops: float
    """Forward."""

    tokenwise_flops: float
    """The part of it that recomputing `other_bytes` repeats."""

    def bytes_of(self, tokens: int) -> BlockBytes:
        """The saved tensors of so many tokens."""
        return BlockBytes(
            input_bytes=round(tokens * self.input_bytes),
            attention_bytes=round(tokens * self.attention_bytes),
            other_bytes=round(tokens * self.other_bytes),
        )


def block_cost(
    architecture: Architecture,
    layer: int,
    *,
    tp: int,
    element_bytes: int,
    fused_norm: bool,
    context_tokens: int,
) -> BlockCost:
    """Cost of block `layer` in documents of `context_tokens`.

    `fused_norm` says that norms are one kernel, as they are on CUDA; elsewhere they save fp32
    intermediates as well.
    """
    a, size = architecture, element_bytes
    width, heads = a.hidden_size, a.num_heads * a.resolved_head_dim // tp
    kv_heads = a.num_kv_heads * a.resolved_head_dim // tp
    inner, post_flops, down_flops = _feed_forward(a, layer, tp=tp, element_bytes=size)
    first_norm, second_norm = _norms(width, size, fused_norm)
    head_norms = 0.0
    if a.qk_norm:
        head_norms = (heads + kv_heads) * (size if fused_norm else 2 * _FP32_BYTES)
    pre_bytes = first_norm + (heads + 2 * kv_heads) * size + head_norms
    post_bytes = second_norm + inner
    whole_bytes = heads * size + a.num_heads / tp * _FP32_BYTES
    output_flops = 2.0 * heads * width
    pre_flops = 2.0 * width * (heads + 2 * kv_heads)
    attention_flops = 4.0 * _keys(a, layer, context_tokens) * heads
    repeated_flops = pre_flops
    if tp > 1:
        # The projection's output, summed over ranks, is kept so that no rank sums it again.
        whole_bytes += width * size
    mixes = a.is_moe_layer(layer)
    if not mixes:
        repeated_flops += post_flops + (output_flops if tp == 1 else 0.0)
    return BlockCost(
        input_bytes=width * size,
        attention_bytes=whole_bytes + (post_bytes if mixes else 0.0),
        other_bytes=pre_bytes + (0.0 if mixes else post_bytes),
        flops=pre_flops + attention_flops + output_flops + post_flops + down_flops,
        tokenwise_flops=repeated_flops,
    )


def mean_cost(costs: list[BlockCost]) -> BlockCost:
    """Of a block on average."""
    count = len(costs)
    return BlockCost(
        input_bytes=sum(c.input_bytes for c in costs) / count,
        attention_bytes=sum(c.attention_bytes for c in costs) / count,
        other_bytes=sum(c.other_bytes for c in costs) / count,
        flops=sum(c.flops for c in costs) / count,
        tokenwise_flops=sum(c.tokenwise_flops for c in costs) / count,
    )


def _norms(width: int, size: int, fused: bool) -> tuple[float, float]:
    """Both norms of a block: what goes in, where that is not the block's input, and comes out."""
    if fused:
        return width * size + _FP32_BYTES, 2.0 * width * size + _FP32_BYTES
    # Normalised in fp32, from a copy in fp32 where the stream is none.
    apart = width * (size + _FP32_BYTES) + _FP32_BYTES
    copied = 0 if size == _FP32_BYTES else width * _FP32_BYTES
    return apart + copied, apart + width * _FP32_BYTES


def _feed_forward(
    a: Architecture, layer: int, *, tp: int, element_bytes: int
) -> tuple[float, float, float]:
    """Bytes after the norm; FLOPs up to the last projection, and of it."""
    if a.moe is None or not a.is_moe_layer(layer):
        width = a.intermediate_size / tp
        flops = 2.0 * a.hidden_size * width
        return 4.0 * width * element_bytes, 2.0 * flops, flops
    return _mixture(a.moe, a, a.experts_of(layer), tp=tp, element_bytes=element_bytes)


def _mixture(
    moe: MoeConfig, a: Architecture, experts: int, *, tp: int, element_bytes: int
) -> tuple[float, float, float]:
    row = moe.dispatch_size or a.hidden_size
    routed = moe.top_k * moe.expert_intermediate_size / tp
    shared = moe.shared_intermediate_size / tp
    # Rows on their way to experts and back; the router reads the stream in fp32.
    elements = moe.top_k * 2 * row + 4 * (routed + shared)
    router_bytes = _FP32_BYTES * (experts + (0 if element_bytes == _FP32_BYTES else a.hidden_size))
    per_row = 2.0 * (row * routed + a.hidden_size * shared)
    return elements * element_bytes + router_bytes, 2.0 * per_row, per_row


def _keys(a: Architecture, layer: int, context_tokens: int) -> float:
    """Keys that a query sees on average."""
    windowed = a.sliding_window is not None and layer >= a.sliding_window_from_layer
    if not windowed or a.sliding_window is None or a.sliding_window >= context_tokens:
        return context_tokens / 2
    return a.sliding_window - a.sliding_window**2 / (2 * context_tokens)
