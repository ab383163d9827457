"""Pure: which stored block is read for which rows of a forward. No torch.

A sequence adds one or more rows (new tokens) at its end and reads all its blocks. A block that one
sequence reads is a part of its own; one that several read, such as a prompt's, is loaded once for
all of them.

B sequences, Q rows of the longest, N parts of one reader, S shared blocks, G readers of the most
shared.

Guarantees, asserted in tests/trainer/rl/engine/test_paging.py:
- every sequence reads each of its blocks once, in order;
- parts that belong to nobody are sequence B's, which does not exist;
- blocks with one reader are not copied unless most of their range is unused.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Reads:
    """Parts of the attention of B sequences."""

    row_BQ: Ints
    """The row that each place stands for; the last one again where a sequence has fewer."""

    place_D: Ints
    """The place b Q + q of each row."""

    position_BQ: Ints
    """Position of each row in its sequence."""

    most_blocks: int
    """Blocks of the sequence that reads most."""

    blocks_N: Ints | None
    """Blocks of the private parts; None where they are blocks 0 to N - 1, read in place."""

    owner_N: Ints
    """Sequence of each private part."""

    nth_N: Ints
    """Which of its sequence's blocks it is."""

    blocks_S: Ints
    owner_SG: Ints
    nth_SG: Ints


def plan_reads(
    tables: Sequence[Sequence[int]],
    rows: Sequence[int],
    starts: Sequence[int],
    block_tokens: int,
) -> Reads:
    """The reads of sequences with these blocks, in order, which add `rows` tokens, the first at
    position `starts`. The rows of all sequences lie one after the other."""
    rows_B, starts_B = np.asarray(rows, dtype=np.int64), np.asarray(starts, dtype=np.int64)
    counts_B = -(-(starts_B + rows_B) // block_tokens)
    listed: list[int] = []
    for table, count in zip(tables, counts_B.tolist(), strict=True):
        listed += table[:count]
    flat = np.array(listed)
    owner = np.repeat(np.arange(len(rows)), counts_B)
    nth = np.arange(len(flat)) - np.repeat(np.cumsum(counts_B) - counts_B, counts_B)
    shared = np.bincount(flat)[flat] > 1
    alone = ~shared
    blocks_N, owner_N, nth_N = _private(flat[alone], owner[alone], nth[alone], len(rows))
    blocks_S, owner_SG, nth_SG = _shared(flat[shared], owner[shared], nth[shared], len(rows))
    within_BQ = np.minimum(np.arange(rows_B.max()), rows_B[:, None] - 1)
    return Reads(
        row_BQ=(np.cumsum(rows_B) - rows_B)[:, None] + within_BQ,
        place_D=np.flatnonzero(np.arange(within_BQ.shape[1]) < rows_B[:, None]),
        position_BQ=starts_B[:, None] + within_BQ,
        most_blocks=int(counts_B.max()),
        blocks_N=blocks_N,
        owner_N=owner_N,
        nth_N=nth_N,
        blocks_S=blocks_S,
        owner_SG=owner_SG,
        nth_SG=nth_SG,
    )


def _private(blocks: Ints, owner: Ints, nth: Ints, nobody: int) -> tuple[Ints | None, Ints, Ints]:
    span = int(blocks.max()) + 1 if len(blocks) else 0
    if 2 * len(blocks) < span:
        return blocks, owner, nth
    owner_N, nth_N = np.full(span, nobody), np.zeros(span, dtype=np.int64)
    owner_N[blocks], nth_N[blocks] = owner, nth
    return None, owner_N, nth_N


def _shared(flat: Ints, owner: Ints, nth: Ints, nobody: int) -> tuple[Ints, Ints, Ints]:
    blocks_S, block_of, readers_S = np.unique(flat, return_inverse=True, return_counts=True)
    most = int(readers_S.max()) if len(readers_S) else 0
    order = np.argsort(block_of, kind="stable")
    begin_S = np.cumsum(readers_S) - readers_S
    reader = np.empty(len(flat), dtype=np.int64)
    reader[order] = np.arange(len(flat)) - np.repeat(begin_S, readers_S)
    owner_SG = np.full((len(blocks_S), most), nobody)
    nth_SG = np.zeros((len(blocks_S), most), dtype=np.int64)
    owner_SG[block_of, reader], nth_SG[block_of, reader] = owner, nth
    return blocks_S, owner_SG, nth_SG
