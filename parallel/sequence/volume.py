"""Pure: bytes that one rank sends for one layer's attention.

Guarantee, asserted in tests/parallel/sequence/test_attention.py: these are what the ledger counts.
"""

from dataclasses import dataclass
from math import lcm

from parallel.sequence.stretches import AttentionScheme

_ACCUMULATOR_BYTES = 4
"""Gradients that travel round a ring are summed in fp32."""


@dataclass(frozen=True, kw_only=True)
class AttentionBytes:
    """Bytes of one layer's attention that every rank of a group sends, part by part."""

    exchange: int
    """All-to-alls of one direction; the same forward and backward."""

    keys: int
    """One hop of keys and values."""

    read: int
    """One hop of what travels in the backward."""

    sums: int
    """One hop of the gradients that travel with it."""

    hops: int
    """Hops of each, `ring` - 1."""

    @property
    def forward(self) -> int:
        """Sent in the forward, and again by a recomputed one."""
        return self.exchange + self.hops * self.keys

    @property
    def backward(self) -> int:
        """Sent in the backward."""
        return self.exchange + self.hops * (self.read + self.sums)

    @property
    def late_share(self) -> float:
        """How much of a block's own work in the backward best waits for the last hop of the sums;
        the rest hides the first hop of what is read."""
        return self.sums / (self.read + self.sums) if self.hops else 0.0


def attention_bytes(
    tokens: int,
    scheme: AttentionScheme,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    element_bytes: int,
) -> AttentionBytes:
    """Exactly what each rank sends for `tokens` of the whole group.

    Keys are replicated to lcm(key heads, ulysses) heads. A ring's gradients make one hop less than
    the published P, since a block's own contribution waits at home.
    """
    degree, ulysses, ring = scheme.degree, scheme.ulysses, scheme.ring
    kv_heads = lcm(num_kv_heads, ulysses)
    exchanged = tokens // degree * 2 * (num_heads + kv_heads) * head_dim * element_bytes
    q_rows, k_rows = tokens // ring * num_heads // ulysses, tokens // ring * kv_heads // ulysses
    keys, read = 2 * k_rows * head_dim * element_bytes, 2 * q_rows * head_dim * element_bytes
    if scheme.backward == "keys":
        read, sums = keys, 2 * k_rows * head_dim * _ACCUMULATOR_BYTES
    else:
        # With each query travel its log-sum-exp and the sum of output × gradient, in fp32.
        read, sums = read + 8 * q_rows, q_rows * head_dim * _ACCUMULATOR_BYTES
    return AttentionBytes(
        exchange=exchanged * (ulysses - 1) // ulysses,
        keys=keys,
        read=read,
        sums=sums,
        hops=ring - 1,
    )
