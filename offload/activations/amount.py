"""How much of the activations pays to move, from sizes and measured rates. Pure.

Guarantees, each asserted in tests/offload/activations/test_amount.py:
- alpha is the largest share whose transfer hides under one block's forward and whose bytes fit the
  tier, and it is within [0, 1];
- what is predicted to be exposed is zero exactly when the transfers hide;
- the cut-off keeps a suffix of the scopes: those that could not be back before backward wants them;
- peak memory is that of the worse of two moments, the beginning and the end of backward.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from offload.host_memory import RankNeed

BACKWARD_OVER_FORWARD = 2.0
"""Time of a block's backward relative to its forward."""


@dataclass(frozen=True, kw_only=True)
class BlockBytes:
    """The saved tensors of one decoder block, each storage once."""

    input_bytes: int
    attention_bytes: int
    """Output of attention, and what of attention itself goes whole."""

    other_bytes: int
    """Everything else that is token-wise."""

    @property
    def total_bytes(self) -> int:
        """What the block keeps when nothing leaves."""
        return self.input_bytes + self.attention_bytes + self.other_bytes

    def moved_bytes(self, alpha: float) -> float:
        """What leaves, one way."""
        return self.input_bytes + self.attention_bytes + alpha * self.other_bytes


def decoder_block_bytes(
    tokens: int,
    *,
    width: int,
    kv_width: int,
    inner_width: int,
    heads: int,
    element_bytes: int = 2,
) -> BlockBytes:
    """Saved tensors of a pre-norm block with gated feed-forward and flash attention.

    In units of a token's elements: input `width`; attention output `width` and an fp32 logarithm
    per head; others: both norms' outputs, queries, keys, values, the stream after attention, and
    four inner ones (gate, its activation, up, their product).
    """
    row = tokens * element_bytes
    return BlockBytes(
        input_bytes=row * width,
        attention_bytes=row * width + tokens * heads * 4,
        other_bytes=row * (4 * width + 2 * kv_width + 4 * inner_width),
    )


def choose_alpha(
    block: BlockBytes,
    *,
    forward_s: float,
    bytes_per_s: float,
    tier_bytes: int,
    blocks: int,
    kept_blocks: int = 2,
) -> float:
    """MEMO's closed form (arXiv 2407.12117, equations of section 4.1).

    Largest alpha with (S_in + S_attn + alpha S_other) / B <= T_forward and, over all blocks but the
    kept ones, at most `tier_bytes`. Zero also where not even input and attention output hide or
    fit; `exposed_s` and `fits` tell these apart.
    """
    swapped = max(blocks - kept_blocks, 1)
    room_bytes = min(bytes_per_s * forward_s, tier_bytes / swapped)
    left_bytes = room_bytes - block.input_bytes - block.attention_bytes
    if block.other_bytes == 0:
        return 1.0 if left_bytes >= 0 else 0.0
    return min(max(left_bytes / block.other_bytes, 0.0), 1.0)


def fits(
    block: BlockBytes, alpha: float, *, tier_bytes: int, blocks: int, kept_blocks: int = 2
) -> bool:
    """Whether the tier holds what all blocks but the kept ones move there."""
    return max(blocks - kept_blocks, 0) * block.moved_bytes(alpha) <= tier_bytes


def activation_need(
    block: BlockBytes,
    alpha: float,
    *,
    blocks: int,
    kept_blocks: int = 2,
    disk: bool = False,
    staging_bytes: int = 0,
) -> RankNeed:
    """Host memory or disk that one rank's swapped activations take, for `find_problems`."""
    tier_bytes = round(max(blocks - kept_blocks, 0) * block.moved_bytes(alpha))
    if disk:
        return RankNeed(file_bytes=tier_bytes, pageable_bytes=staging_bytes)
    return RankNeed(pinned_bytes=tier_bytes, pageable_bytes=staging_bytes)


@dataclass(frozen=True, kw_only=True)
class SwapPrediction:
    """Time and memory of one step's blocks."""

    step_s: float
    """Forward and backward of all blocks, recomputation and exposed copies included."""

    exposed_s: float
    """Copies that compute does not hide."""

    recompute_s: float
    peak_bytes: float
    """Activations in device memory: kept blocks, the one at work, and the window."""

    moved_bytes: float
    """One way, all blocks."""


def predict_swap(
    block: BlockBytes,
    alpha: float,
    *,
    forward_s: float,
    tokenwise_s: float,
    bytes_per_s: float,
    blocks: int,
    kept_blocks: int = 2,
    window_bytes: float | None = None,
) -> SwapPrediction:
    """What a step takes when `alpha` of the tokens is swapped, with `window_bytes` beyond the block
    at work for what leaves and what is fetched: a whole block's worth where it is None.

    `tokenwise_s` is the part of a block's forward outside attention, which recomputing the other
    tokens repeats in proportion.
    """
    swapped = max(blocks - kept_blocks, 0)
    if window_bytes is None:
        window_bytes = block.total_bytes if swapped > 1 else 0
    moved_bytes = block.moved_bytes(alpha)
    recompute_s = swapped * (1.0 - alpha) * tokenwise_s
    copy_s = moved_bytes / bytes_per_s
    out_s = swapped * max(copy_s - forward_s, 0.0)
    backward_s = BACKWARD_OVER_FORWARD * forward_s + (1.0 - alpha) * tokenwise_s
    back_s = swapped * max(copy_s - backward_s, 0.0)
    compute_s = blocks * (1.0 + BACKWARD_OVER_FORWARD) * forward_s
    return SwapPrediction(
        step_s=compute_s + recompute_s + out_s + back_s,
        exposed_s=out_s + back_s,
        recompute_s=recompute_s,
        peak_bytes=(min(kept_blocks, blocks) + min(swapped, 1)) * block.total_bytes + window_bytes,
        moved_bytes=swapped * moved_bytes,
    )


@dataclass(frozen=True, kw_only=True)
class Scope:
    """A part of forward, in its order: what it saves and how long it runs."""

    saved_bytes: int
    forward_s: float


def first_kept(scopes: Sequence[Scope], *, bytes_per_s: float) -> int:
    """SSDTrain's cut-off (arXiv 2408.10013): scopes from this index on stay in memory.

    Scope n is worth moving while everything moved before it, plus its own way out and back, fits
    through the link by the time backward reaches it: (sum v_p + 2 v_n) / (3 T - 2 sum t_p) <= B,
    with T the whole forward, p the scopes before n, and backward twice as long as forward.
    """
    total_s = sum(scope.forward_s for scope in scopes)
    before_bytes, before_s = 0, 0.0
    for index, scope in enumerate(scopes):
        time_s = (1.0 + BACKWARD_OVER_FORWARD) * total_s - BACKWARD_OVER_FORWARD * before_s
        if before_bytes + 2 * scope.saved_bytes > bytes_per_s * time_s:
            return index
        before_bytes += scope.saved_bytes
        before_s += scope.forward_s
    return len(scopes)


def peak_memory_bytes(
    *,
    kept_bytes: int,
    in_flight_bytes: int,
    fetched_bytes: int,
    gradient_bytes: int,
    transient_bytes: int,
    staging_bytes: int = 0,
) -> int:
    """Most memory that a step takes beyond weights and what is there all the time.

    When backward begins: the kept blocks, and what is still leaving or is fetched already. When it
    ends: what is fetched, and the gradients of all weights but those of the first block. At either
    time, what one block's backward makes and frees again, its weights' gradients included.
    """
    beginning = kept_bytes + max(in_flight_bytes, fetched_bytes)
    return staging_bytes + transient_bytes + max(beginning, fetched_bytes + gradient_bytes)
