"""Pure: how fast every pair of places is, from measurements and from telemetry.

Places are ranks or hosts, numbered from 0; a link has a direction. Sending `n` bytes takes
`latency_s + n / bytes_per_s`.

Guarantees, each asserted in tests/comms/links/test_map.py:
- a link that keeps its rate keeps its estimate; one that changes is followed, by `share` of the
  distance per observation;
- an observation moves latency or rate, whichever made up most of its time, and no other link;
- what cannot be is refused.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

Matrix = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class LinkMap:
    """Latency and bandwidth from row to column; the diagonal says nothing.

    Raises ValueError where the matrices are not square and equal, or a link has a negative latency
    or no bandwidth.
    """

    latency_s: Matrix
    bytes_per_s: Matrix

    def __post_init__(self) -> None:
        places = len(self.bytes_per_s)
        for name, matrix in (("latency_s", self.latency_s), ("bytes_per_s", self.bytes_per_s)):
            if any(len(row) != places for row in matrix) or len(matrix) != places:
                raise ValueError(f"{name} must be {places} rows of {places} numbers.")
        for a, b in self.links():
            latency_s, bytes_per_s = self.latency_s[a][b], self.bytes_per_s[a][b]
            if not (0 <= latency_s < math.inf and 0 < bytes_per_s < math.inf):
                raise ValueError(
                    f"The link from {a} to {b} has latency_s={latency_s} and "
                    f"bytes_per_s={bytes_per_s}; both must be finite, and the second above 0."
                )

    @property
    def places(self) -> int:
        """How many places the map has."""
        return len(self.bytes_per_s)

    def links(self) -> list[tuple[int, int]]:
        """All directed pairs of different places."""
        return [(a, b) for a in range(self.places) for b in range(self.places) if a != b]

    def seconds(self, link: tuple[int, int], sent_bytes: int) -> float:
        """How long a message takes."""
        a, b = link
        return self.latency_s[a][b] + sent_bytes / self.bytes_per_s[a][b]

    def both_ways(self, a: int, b: int) -> float:
        """Bandwidth of the slower direction between two places."""
        return min(self.bytes_per_s[a][b], self.bytes_per_s[b][a])

    def observe(
        self, link: tuple[int, int], sent_bytes: int, seconds: float, *, share: float = 0.2
    ) -> "LinkMap":
        """The map after one more message was timed, an exponential moving average.

        Raises ValueError where the link is not one, nothing was sent, or it took no time.
        """
        a, b = link
        if link not in self.links() or sent_bytes < 1 or not 0 < seconds < math.inf:
            raise ValueError(
                f"{sent_bytes} bytes over link {link} in {seconds} s cannot be: places are 0 to "
                f"{self.places - 1} and different, bytes and seconds above 0."
            )
        latency_s, bytes_per_s = self.latency_s[a][b], self.bytes_per_s[a][b]
        if sent_bytes / bytes_per_s < latency_s:
            seen_s = max(seconds - sent_bytes / bytes_per_s, 0.0)
            news = latency_s + share * (seen_s - latency_s)
            return replace(self, latency_s=_with(self.latency_s, link, news))
        # The latency may have been overestimated; the rate must stay finite.
        busy_s = max(seconds - latency_s, seconds / 2)
        # Times add up, rates do not: their average is that of seconds per byte.
        per_byte_s = (1 - share) / bytes_per_s + share * busy_s / sent_bytes
        return replace(self, bytes_per_s=_with(self.bytes_per_s, link, 1 / per_byte_s))


def map_of(latency_s: Sequence[Sequence[float]], bytes_per_s: Sequence[Sequence[float]]) -> LinkMap:
    """A map from any sequences of rows."""
    return LinkMap(tuple(map(tuple, latency_s)), tuple(map(tuple, bytes_per_s)))


def _with(matrix: Matrix, link: tuple[int, int], value: float) -> Matrix:
    rows = [list(row) for row in matrix]
    rows[link[0]][link[1]] = value
    return tuple(map(tuple, rows))
