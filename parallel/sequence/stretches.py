"""Pure: how one group of ranks shares the attention of one packed sequence, and who holds what.

The group's ranks are numbered by position. Ulysses ranks are neighbours, which exchange heads
for tokens; the ring passes keys and values (in the backward of BurstAttention: queries) between
blocks of them. With `hosts`, the ring is two rings in each other: blocks go round inside a host
while the next host's block is already on its way (BurstAttention, arXiv 2403.09347, section 3).

Guarantees, each asserted in tests/parallel/sequence/test_stretches.py:
- the stretches of all positions partition the stream, each position holds equally many tokens;
- of one document, every ring block has the same number of causal pairs (zigzag).
"""

from dataclasses import dataclass
from math import lcm
from typing import Literal

Stretch = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class AttentionScheme:
    """How one sequence group shares attention. Position = ring position × `ulysses` + own."""

    ulysses: int = 1
    """Ranks that exchange heads; neighbours."""

    ring: int = 1
    """Blocks of `ulysses` ranks that pass keys or queries round."""

    hosts: int = 1
    """Size of the outer of two nested rings; divides `ring`."""

    backward: Literal["keys", "queries"] = "keys"
    """What travels in the ring's backward."""

    def __post_init__(self) -> None:
        for name, size in (("ulysses", self.ulysses), ("ring", self.ring), ("hosts", self.hosts)):
            if size < 1:
                raise ValueError(f"{name} must be a positive number of ranks, got {size}")
        if self.ring % self.hosts:
            raise ValueError(
                f"hosts={self.hosts} does not divide ring={self.ring}; choose a divisor of "
                f"{self.ring}"
            )

    @property
    def degree(self) -> int:
        """Ranks that share one sequence."""
        return self.ulysses * self.ring

    def __str__(self) -> str:
        words = [f"ulysses {self.ulysses}"] if self.ulysses > 1 or self.ring == 1 else []
        if self.ring > 1:
            words.append(f"ring {self.ring}")
        text = " × ".join(words)
        if self.hosts > 1:
            text += f" over {self.hosts} hosts"
        return f"{text}, queries travel back" if self.backward == "queries" else text


def padding_multiple(scheme: AttentionScheme) -> int:
    """What the tokens of a group's stream must be a multiple of."""
    if scheme.ring == 1:
        return scheme.ulysses
    return scheme.ring * lcm(2, scheme.ulysses)


def token_ranges(total_tokens: int, scheme: AttentionScheme, position: int) -> tuple[Stretch, ...]:
    """Stretches [start, stop) of the group's stream that `position` holds, ascending.

    Ring block r of R holds chunks r and 2R-1-r of 2R, and its Ulysses ranks an equal part each.
    Raises ValueError where the tokens do not divide or there is no such position.
    """
    multiple = padding_multiple(scheme)
    if total_tokens < 1 or total_tokens % multiple:
        raise ValueError(
            f"{total_tokens} tokens do not spread over {scheme}; pad them to "
            f"{max(1, -(-total_tokens // multiple)) * multiple}, a multiple of {multiple}"
        )
    if not 0 <= position < scheme.degree:
        raise ValueError(f"position {position} is outside 0..{scheme.degree - 1}")
    block, part = divmod(position, scheme.ulysses)
    share = total_tokens // scheme.degree
    return _within(_block(total_tokens, scheme.ring, block), part * share, (part + 1) * share)


def _block(total_tokens: int, ring: int, block: int) -> tuple[Stretch, ...]:
    """Both chunks of a ring block, one stretch where they touch."""
    if ring == 1:
        return ((0, total_tokens),)
    chunk = total_tokens // (2 * ring)
    low, high = block * chunk, (2 * ring - 1 - block) * chunk
    if low + chunk == high:
        return ((low, high + chunk),)
    return ((low, low + chunk), (high, high + chunk))


def _within(stretches: tuple[Stretch, ...], start: int, stop: int) -> tuple[Stretch, ...]:
    """The part [start, stop) of the concatenation of `stretches`."""
    found, before = [], 0
    for low, high in stretches:
        first, last = low + max(0, start - before), low + min(high - low, stop - before)
        if first < last:
            found.append((first, last))
        before += high - low
    return tuple(found)
