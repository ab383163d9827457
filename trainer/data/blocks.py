"""Which stretches of which files form a block: the unit that is tokenised, stored and shuffled.

Invariants, each asserted in tests/trainer/data/test_blocks.py:
- every accepted stretch is in exactly one block, in source order;
- a block is closed as soon as it holds `block_bytes`, so all but the last hold at least that;
- the result depends on the stretches and `block_bytes` only.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SPAN = np.dtype([("file", "<i8"), ("start", "<i8"), ("stop", "<i8"), ("first", "<i8")])
"""A stretch of a file: `start` to `stop` are bytes (text, JSON lines) or rows (Parquet), `first` is
the number of its first document as people count: the line, or the row, from 1."""


@dataclass(frozen=True)
class Blocks:
    """Spans in source order, and which of them are which block."""

    spans: NDArray[np.void]
    """[S] of SPAN."""

    ends: NDArray[np.int64]
    """[B]: one past the last span of each block."""

    @property
    def count(self) -> int:
        """Number of blocks."""
        return len(self.ends)

    def spans_of(self, block: int) -> NDArray[np.void]:
        """The spans of one block, in source order."""
        first = int(self.ends[block - 1]) if block else 0
        return self.spans[first : int(self.ends[block])]


class BlockBuilder:
    """Collects stretches in source order."""

    def __init__(self, block_bytes: int) -> None:
        self._block_bytes = block_bytes
        self._used_bytes = 0.0
        self._spans: list[list[int]] = []
        self._ends: list[int] = []

    @property
    def room_bytes(self) -> float:
        """Bytes that the open block still takes before it closes; always positive."""
        return self._block_bytes - self._used_bytes

    def add(self, file: int, start: int, stop: int, *, first: int, size_bytes: float) -> None:
        """Put a stretch into the open block, and close the block if it is full."""
        last = self._spans[-1] if self._used_bytes else None
        if last is not None and last[0] == file and last[2] == start:
            last[2] = stop
        else:
            self._spans.append([file, start, stop, first])
        self._used_bytes += size_bytes
        if self._used_bytes >= self._block_bytes:
            self._close()

    def finish(self) -> Blocks:
        """All blocks; the last may be short."""
        if self._used_bytes:
            self._close()
        spans = np.array([tuple(span) for span in self._spans], dtype=SPAN)
        return Blocks(spans, np.array(self._ends, dtype=np.int64))

    def _close(self) -> None:
        self._ends.append(len(self._spans))
        self._used_bytes = 0.0
