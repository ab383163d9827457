"""Placements by simple rules: quick, valid, and an upper bound for the exact program. Pure."""

from collections.abc import Callable, Sequence

from offload.memory_plan.requests import Request, peak_bytes

ORDERS: tuple[Callable[[Request], tuple[int, int]], ...] = (
    lambda r: (-r.size_bytes, r.begin),
    lambda r: (-(r.end - r.begin), -r.size_bytes),
    lambda r: (r.begin, -r.size_bytes),
    lambda r: (-(r.end - r.begin) * r.size_bytes, r.begin),
)
"""Large first, long-lived first, in the order of arrival, and largest area first."""


def place_greedily(requests: Sequence[Request]) -> dict[str, int]:
    """The best of first-fit placements in a few orders; the same arguments give the same one."""
    placements = [_first_fit(sorted(requests, key=order)) for order in ORDERS]
    return min(placements, key=lambda addresses: peak_bytes(requests, addresses))


def _first_fit(requests: Sequence[Request]) -> dict[str, int]:
    """Each in its turn at the lowest address that is free for all of its life."""
    placed: list[tuple[int, Request]] = []
    for request in requests:
        taken = sorted(
            (address, address + other.size_bytes)
            for address, other in placed
            if request.overlaps(other)
        )
        at = 0
        for begin, end in taken:
            if at + request.size_bytes <= begin:
                break
            at = max(at, end)
        placed.append((at, request))
    return {request.name: address for address, request in placed}
