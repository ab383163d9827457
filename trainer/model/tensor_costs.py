"""Pure: which tensor-parallel degrees a decoder can have, and what they send.

Guarantees, asserted in tests/trainer/model/test_tensor_costs.py, and the last in test_tensor.py:
- a degree that is accepted divides everything that is cut, and what cannot be cut is refused;
- `tensor_bytes` are the bytes that ranks count.
"""

from collections.abc import Iterator
from math import gcd

from comms.volume import all_reduce_bytes, gather_bytes
from parallel.layout import divisors
from trainer.model.config import Architecture

_FP32_BYTES = 4


def check_tensor_degree(architecture: Architecture, tp: int) -> None:
    """Raise ValueError naming the first size that `tp` ranks cannot share evenly, or what of the
    model they cannot share at all."""
    if tp == 1:
        return
    moe = architecture.moe
    if moe is not None and (moe.residual or moe.dispatch_size):
        key = "residual" if moe.residual else "dispatch_size"
        raise ValueError(
            f"parallel.tp={tp} does not work with model.moe.{key}, whose projections are not cut; "
            "set parallel.tp to 1 and spread the experts with parallel.ep"
        )
    sizes = list(_cut_sizes(architecture))
    for key, size in sizes:
        if size % tp:
            common = gcd(*(each for _, each in sizes))
            raise ValueError(
                f"parallel.tp={tp} does not divide {key}={size} (whose divisors are "
                f"{divisors(size)}); choose parallel.tp among {divisors(common)}, which divide "
                "all that is cut"
            )


def _cut_sizes(a: Architecture) -> Iterator[tuple[str, int]]:
    yield "model.num_kv_heads", a.num_kv_heads
    yield "model.num_heads", a.num_heads
    mixtures = [layer for layer in range(a.num_layers) if a.is_moe_layer(layer)]
    if len(mixtures) < a.num_layers:
        yield "model.intermediate_size", a.intermediate_size
    if a.moe is not None and mixtures:
        yield "model.moe.expert_intermediate_size", a.moe.expert_intermediate_size
        if a.moe.shared_intermediate_size:
            yield "model.moe.shared_intermediate_size", a.moe.shared_intermediate_size
    yield "model.vocab_size", a.vocab_size


def tensor_bytes(
    architecture: Architecture,
    *,
    tokens: int,
    tp: int,
    activation_bytes: int,
    loss_chunk_tokens: int,
    recompute: bool,
) -> dict[str, int]:
    """Bytes that one rank sends over `tp` in one forward and backward, per operation.

    `activation_bytes` is the size of one element of activations and gathered weights. Per block
    and direction, attention and feed-forward sum [T, D] once each. Recomputation stops before the
    last sum of a block, which nothing in it needs.
    """
    a = architecture
    layers = range(a.num_layers)
    mixtures = sum(a.is_moe_layer(layer) for layer in layers)
    activations = all_reduce_bytes(tokens * a.hidden_size * activation_bytes, tp)
    summed = activations * (1 + (5 if recompute else 4) * a.num_layers)
    if a.qk_norm:
        head = all_reduce_bytes(a.resolved_head_dim * activation_bytes, tp)
        summed += 2 * head * a.num_layers
    if a.moe is not None:
        summed += mixtures * all_reduce_bytes(tokens * a.moe.top_k * _FP32_BYTES, tp)
    gathered = 0
    for start in range(0, tokens, loss_chunk_tokens):
        chunk = min(loss_chunk_tokens, tokens - start)
        summed += all_reduce_bytes(chunk * a.hidden_size * activation_bytes, tp)
        gathered += gather_bytes(tp * 2 * chunk * _FP32_BYTES, tp)
    return {"all_reduce": summed, "all_gather": gathered}
