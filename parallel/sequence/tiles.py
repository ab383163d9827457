"""Pure: which rectangles of (query, key) pairs remain between two blocks of a packed stream.

Documents are contiguous, so a chunk of queries [a, b) sees earlier keys [c, d), d <= a, only
through the document that contains position a: every pair of chunks is at most one full rectangle.
A block's own part is causal attention over its concatenated stretches, in which a document that
spans the gap between them simply goes on.

Guarantees, each asserted in tests/parallel/sequence/test_tiles.py:
- own parts and rectangles of all blocks cover every causal pair inside a document exactly once;
- no rectangle is empty, and no two that together are a rectangle stay apart.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from parallel.sequence.stretches import AttentionScheme, Stretch, token_ranges

Ends = tuple[int, ...]


@dataclass(frozen=True)
class Rectangle:
    """Local queries [q_start, q_stop), all of which see local keys [k_start, k_stop)."""

    q_start: int
    q_stop: int
    k_start: int
    k_stop: int


@dataclass(frozen=True)
class RingTiles:
    """What one block of a ring computes."""

    own_ends: Ends
    """Document ends inside its own concatenated stretches."""

    own_queries: tuple[tuple[Rectangle, ...], ...]
    """Per block: its queries (rows) on that block's keys."""

    own_keys: tuple[tuple[Rectangle, ...], ...]
    """Per block: that block's queries (rows) on its keys."""


# Every layer asks for the same stream; a step has a handful of them.
@lru_cache(maxsize=32)
def ring_tiles(document_ends: Ends, ring: int, block: int) -> RingTiles:
    """The work of `block` of a ring of `ring` blocks; `document_ends` are those of the stream."""
    scheme = AttentionScheme(ring=ring)
    blocks = [token_ranges(document_ends[-1], scheme, other) for other in range(ring)]
    own = blocks[block]
    return RingTiles(
        own_ends=ends_within(own, document_ends),
        own_queries=tuple(rectangles(own, other, document_ends) for other in blocks),
        own_keys=tuple(rectangles(other, own, document_ends) for other in blocks),
    )


def ends_within(stretches: Sequence[Stretch], document_ends: Ends) -> Ends:
    """Document ends in the concatenation of ascending `stretches` of the stream."""
    ends: list[int] = []
    before, last_document = 0, -1
    for start, stop in stretches:
        document = bisect_right(document_ends, start)
        if document == last_document:
            ends.pop()
        while True:
            cut = min(document_ends[document], stop)
            ends.append(before + cut - start)
            if cut == stop:
                break
            document += 1
        last_document = document
        before += stop - start
    return tuple(ends)


def rectangles(
    queries: Sequence[Stretch], keys: Sequence[Stretch], document_ends: Ends
) -> tuple[Rectangle, ...]:
    """Pairs of causal attention between different blocks, in local indices of each."""
    found: list[Rectangle] = []
    q_before = 0
    for a, b in queries:
        document = bisect_right(document_ends, a)
        start = document_ends[document - 1] if document else 0
        k_before = 0
        for c, d in keys:
            first = max(start, c)
            if d <= a and first < d:
                q_stop = q_before + min(document_ends[document], b) - a
                tile = Rectangle(q_before, q_stop, k_before + first - c, k_before + d - c)
                _add(found, tile)
            k_before += d - c
        q_before += b - a
    return tuple(found)


def _add(found: list[Rectangle], tile: Rectangle) -> None:
    """Append a tile, or make it one with the last."""
    if found:
        last = found[-1]
        same_rows = (last.q_start, last.q_stop) == (tile.q_start, tile.q_stop)
        same_keys = (last.k_start, last.k_stop) == (tile.k_start, tile.k_stop)
        if same_rows and last.k_stop == tile.k_start:
            found[-1] = Rectangle(tile.q_start, tile.q_stop, last.k_start, tile.k_stop)
            return
        if same_keys and last.q_stop == tile.q_start:
            found[-1] = Rectangle(last.q_start, tile.q_stop, tile.k_start, tile.k_stop)
            return
    found.append(tile)
