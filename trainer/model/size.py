"""Pure: how many parameters a decoder has and how much arithmetic a token costs.

Guarantees, each asserted in tests/trainer/model/test_size.py: `parameter_shapes` names exactly the
parameters of the module, with their shapes.
"""

from collections.abc import Iterator
from math import prod

from trainer.model.config import Architecture, MoeConfig

Shape = tuple[int, ...]


def parameter_shapes(architecture: Architecture, vocab_size: int = 0) -> dict[str, Shape]:
    """Name and shape of every parameter. A `vocab_size` of 0 takes the architecture's."""
    a = architecture
    embedding = (vocab_size or a.vocab_size, a.hidden_size)
    shapes: dict[str, Shape] = {"embed_tokens.weight": embedding}
    for layer in range(a.num_layers):
        prefix = f"layers.{layer}."
        shapes.update({prefix + name: shape for name, shape in _block_shapes(a, layer)})
    shapes["norm.weight"] = (a.hidden_size,)
    if not a.tie_embeddings:
        shapes["lm_head.weight"] = embedding
    return shapes


def _block_shapes(a: Architecture, layer: int) -> Iterator[tuple[str, Shape]]:
    head_dim = a.resolved_head_dim
    yield "input_layernorm.weight", (a.hidden_size,)
    for name, heads in (("q", a.num_heads), ("k", a.num_kv_heads), ("v", a.num_kv_heads)):
        yield f"self_attn.{name}_proj.weight", (heads * head_dim, a.hidden_size)
        if a.qkv_bias:
            yield f"self_attn.{name}_proj.bias", (heads * head_dim,)
    yield "self_attn.o_proj.weight", (a.hidden_size, a.num_heads * head_dim)
    if a.qk_norm:
        yield "self_attn.q_norm.weight", (head_dim,)
        yield "self_attn.k_norm.weight", (head_dim,)
    yield "post_attention_layernorm.weight", (a.hidden_size,)
    if a.moe is None or not a.is_moe_layer(layer):
        yield from _swiglu_shapes("mlp.", a.hidden_size, a.intermediate_size)
        return
    yield from _mixture_shapes(a.moe, a.hidden_size, a.experts_of(layer))


def _mixture_shapes(moe: MoeConfig, hidden: int, experts: int) -> Iterator[tuple[str, Shape]]:
    width, row = moe.expert_intermediate_size, moe.dispatch_size or hidden
    yield "mlp.gate.weight", (experts, hidden)
    yield "mlp.experts.gate_up_proj", (experts, row, 2 * width)
    yield "mlp.experts.down_proj", (experts, width, row)
    if moe.shared_intermediate_size:
        yield from _swiglu_shapes("mlp.shared_experts.", hidden, moe.shared_intermediate_size)
    if moe.dispatch_size:
        yield "mlp.descend.weight", (row, hidden)
        yield "mlp.ascend.weight", (hidden, row)
    if moe.residual:
        yield "mlp.coefficients.weight", (2, hidden)
        yield "mlp.coefficients.bias", (2,)


def _swiglu_shapes(prefix: str, hidden: int, width: int) -> Iterator[tuple[str, Shape]]:
    yield f"{prefix}gate_proj.weight", (width, hidden)
    yield f"{prefix}up_proj.weight", (width, hidden)
    yield f"{prefix}down_proj.weight", (hidden, width)


def parameter_count(architecture: Architecture, vocab_size: int = 0) -> int:
    """All parameters."""
    return sum(prod(shape) for shape in parameter_shapes(architecture, vocab_size).values())


def active_parameter_count(architecture: Architecture, vocab_size: int = 0) -> int:
    """Parameters that one token passes: of the routed experts only the chosen ones."""
    active = 0
    for name, shape in parameter_shapes(architecture, vocab_size).items():
        if architecture.moe is not None and ".mlp.experts." in name:
            shape = (architecture.moe.top_k, *shape[1:])
        active += prod(shape)
    return active


def flops_per_token(architecture: Architecture, vocab_size: int, context_tokens: int) -> float:
    """Floating-point operations of forward and backward for one token of a document of that length.

    Backward counts twice the forward. A weight costs two operations, embedding look-ups none.
    Attention is causal: a token sees half of the document on average, or its window.
    """
    a = architecture
    embedding = (vocab_size or a.vocab_size) * a.hidden_size
    weights = active_parameter_count(a, vocab_size) - (0 if a.tie_embeddings else embedding)
    keys = 0.0
    for layer in range(a.num_layers):
        windowed = a.sliding_window is not None and layer >= a.sliding_window_from_layer
        keys += _mean_keys(context_tokens, a.sliding_window if windowed else None)
    # Scores and weighted values: a multiplication and an addition each, per key and channel.
    attention = 4.0 * keys * a.num_heads * a.resolved_head_dim
    return 3.0 * (2.0 * weights + attention)


def step_flops(architecture: Architecture, context_tokens: int) -> tuple[float, float]:
    """Forward and backward of a token without attention to others, and of attention per squared
    token of a sequence of about `context_tokens`."""
    vocab_size = architecture.vocab_size
    linear = flops_per_token(architecture, vocab_size, context_tokens=0)
    whole = flops_per_token(architecture, vocab_size, context_tokens=context_tokens)
    return linear, (whole - linear) / context_tokens


def _mean_keys(context_tokens: int, window: int | None) -> float:
    if window is None or window >= context_tokens:
        return context_tokens / 2
    return window - window**2 / (2 * context_tokens)
