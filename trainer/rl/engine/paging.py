"""Pure: which stored block is read for which rows of a forward. No torch.

A sequence adds one or more rows (new tokens) at its end and reads all its blocks. Its attention is
computed block by block and merged (FlashDecoding). A block that one sequence reads is a part of
its own; one that several read, such as a prompt's, is loaded once for all of them.

B sequences, Q rows of the longest, N parts of one reader, S shared blocks, G readers of the most
shared, L parts of the longest sequence; parts are numbered N private ones, then S G shared ones.

Guarantees, asserted in tests/trainer/rl/engine/test_paging.py:
- every sequence reads each of its blocks once, in order;
- parts that belong to nobody are out of reach of every query;
- blocks with one reader are not copied unless most of their range is unused.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

OUT_OF_REACH = 2**40
"""A position after every query's."""

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Reads:
    """Parts of the attention of B sequences."""

    rows_each: int
    """Q."""

    row_BQ: Ints
    """The row that each place stands for; the last one again where a sequence has fewer."""

    place_D: Ints
    """The place b Q + q of each row."""

    position_BQ: Ints
    """Position of each row in its sequence."""

    blocks_N: Ints | None
    """Blocks of the private parts; None where they are blocks 0 to N - 1, read in place."""

    owner_N: Ints
    """Sequence of each private part."""

    first_N: Ints
    """Position of its first key."""

    blocks_S: Ints
    owner_SG: Ints
    first_SG: Ints

    parts_BL: Ints
    """Parts of each sequence, one of its own again where it has fewer."""


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
    begin_B = np.cumsum(counts_B) - counts_B
    first = (np.arange(len(flat)) - np.repeat(begin_B, counts_B)) * block_tokens
    shared = np.bincount(flat)[flat] > 1
    part = np.empty(len(flat), dtype=np.int64)
    alone = ~shared
    blocks_N, owner_N, first_N = _private(flat, owner, first, alone, part)
    blocks_S, owner_SG, first_SG = _shared(flat, owner, first, shared, part, len(owner_N))
    within_BL = np.minimum(np.arange(int(counts_B.max())), counts_B[:, None] - 1)
    rows_each = int(rows_B.max())
    within_BQ = np.minimum(np.arange(rows_each), rows_B[:, None] - 1)
    return Reads(
        rows_each=rows_each,
        row_BQ=(np.cumsum(rows_B) - rows_B)[:, None] + within_BQ,
        place_D=np.flatnonzero(np.arange(rows_each) < rows_B[:, None]),
        position_BQ=starts_B[:, None] + within_BQ,
        blocks_N=blocks_N,
        owner_N=owner_N,
        first_N=first_N,
        blocks_S=blocks_S,
        owner_SG=owner_SG,
        first_SG=first_SG,
        parts_BL=part[begin_B[:, None] + within_BL],
    )


def _private(
    flat: Ints, owner: Ints, first: Ints, alone: NDArray[np.bool_], part: Ints
) -> tuple[Ints | None, Ints, Ints]:
    blocks = flat[alone]
    span = int(blocks.max()) + 1 if len(blocks) else 0
    if 2 * len(blocks) < span:
        part[alone] = np.arange(len(blocks))
        return blocks, owner[alone], first[alone]
    owner_N = np.zeros(span, dtype=np.int64)
    first_N = np.full(span, OUT_OF_REACH)
    owner_N[blocks], first_N[blocks] = owner[alone], first[alone]
    part[alone] = blocks
    return None, owner_N, first_N


def _shared(
    flat: Ints,
    owner: Ints,
    first: Ints,
    shared: NDArray[np.bool_],
    part: Ints,
    num_private: int,
) -> tuple[Ints, Ints, Ints]:
    where = np.flatnonzero(shared)
    blocks_S, block_of, readers_S = np.unique(flat[where], return_inverse=True, return_counts=True)
    most = int(readers_S.max()) if len(readers_S) else 0
    order = np.argsort(block_of, kind="stable")
    begin_S = np.cumsum(readers_S) - readers_S
    nth = np.empty(len(where), dtype=np.int64)
    nth[order] = np.arange(len(where)) - np.repeat(begin_S, readers_S)
    owner_SG = np.zeros((len(blocks_S), most), dtype=np.int64)
    first_SG = np.full((len(blocks_S), most), OUT_OF_REACH)
    owner_SG[block_of, nth], first_SG[block_of, nth] = owner[where], first[where]
    part[where] = num_private + block_of * most + nth
    return blocks_S, owner_SG, first_SG
