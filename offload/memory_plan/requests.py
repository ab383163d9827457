"""Memory requests with known lifetimes, and what can be said about them without placing any. Pure.

Guarantees, each asserted in tests/offload/memory_plan/test_requests.py:
- no plan needs less than the lower bound, the most bytes alive at one time;
- a placement is valid exactly if requests alive together share no byte.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Request:
    """A tensor that lives from `begin` up to, not including, `end`."""

    name: str
    size_bytes: int
    begin: int
    end: int

    def __post_init__(self) -> None:
        if self.size_bytes < 0 or self.end <= self.begin:
            raise ValueError(
                f"request {self.name} has {self.size_bytes} bytes from {self.begin} to {self.end}; "
                "sizes are not negative and ends come after begins"
            )

    def overlaps(self, other: "Request") -> bool:
        """Whether both are alive at some time."""
        return self.begin < other.end and other.begin < self.end


@dataclass(frozen=True, kw_only=True)
class Placement:
    """An address for every request, by name."""

    addresses: Mapping[str, int]
    peak_bytes: int
    lower_bound_bytes: int
    optimal: bool
    """Whether no placement of the same requests has a lower peak."""

    @property
    def fragmentation(self) -> float:
        """Share of the peak that the lower bound does not explain."""
        if self.peak_bytes == 0:
            return 0.0
        return 1.0 - self.lower_bound_bytes / self.peak_bytes


def aligned(requests: Sequence[Request], alignment: int) -> list[Request]:
    """The same requests with sizes rounded up, and without the empty ones."""
    return [
        Request(
            name=r.name,
            size_bytes=-(-r.size_bytes // alignment) * alignment,
            begin=r.begin,
            end=r.end,
        )
        for r in requests
        if r.size_bytes
    ]


def lower_bound_bytes(requests: Sequence[Request]) -> int:
    """The most bytes alive at one time."""
    changes: dict[int, int] = {}
    for request in requests:
        changes[request.begin] = changes.get(request.begin, 0) + request.size_bytes
        changes[request.end] = changes.get(request.end, 0) - request.size_bytes
    alive = most = 0
    for time in sorted(changes):
        alive += changes[time]
        most = max(most, alive)
    return most


def conflicts(requests: Sequence[Request]) -> list[tuple[int, int]]:
    """Pairs of positions whose lifetimes overlap."""
    return [
        (i, j)
        for i, one in enumerate(requests)
        for j in range(i + 1, len(requests))
        if one.overlaps(requests[j])
    ]


def find_overlap(requests: Sequence[Request], addresses: Mapping[str, int]) -> str | None:
    """Two requests that share bytes while both are alive, in words; None for a valid placement."""
    for i, j in conflicts(requests):
        one, other = requests[i], requests[j]
        a, b = addresses[one.name], addresses[other.name]
        if a < b + other.size_bytes and b < a + one.size_bytes:
            return f"{one.name} at {a} and {other.name} at {b} are alive together"
    return None


def peak_bytes(requests: Sequence[Request], addresses: Mapping[str, int]) -> int:
    """The end of the highest request."""
    return max((addresses[r.name] + r.size_bytes for r in requests), default=0)
