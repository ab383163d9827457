"""Pure: bytes one rank sends in a collective.

Volumes are those of bandwidth-optimal (ring) algorithms: n bytes over p ranks cost 2 n (p-1)/p
for an all-reduce, and n (p-1)/p for a reduce-scatter of n or an all-gather to n (Thakur et al.,
"Optimization of collective communication operations in MPICH", 2005).
"""


def all_reduce_bytes(payload_bytes: int, ranks: int) -> int:
    """Bytes one rank sends to sum `payload_bytes` over `ranks`."""
    return 2 * payload_bytes * (ranks - 1) // ranks


def gather_bytes(full_bytes: int, ranks: int) -> int:
    """Bytes one rank sends to gather to, or reduce-scatter from, `full_bytes` over `ranks`."""
    return full_bytes * (ranks - 1) // ranks
