"""How the documents of one block become rows of at most `seq_len` tokens. Pure; free of torch.

A document of length n holds n pairs of an input token and the next token. Guarantees, each
asserted in tests/trainer/data/test_packing.py:
- every pair of every packed document is in exactly one row, exactly once;
- no row holds more than `seq_len` pairs, and none is empty;
- `split` fills every row but the last; `whole` never cuts a document, and leaves out exactly those
  that are longer than a row; `single` puts no two documents in one row, and cuts none that fits;
- the number of rows does not depend on the order of the documents;
- the same arguments give the same rows on every machine.

D documents, R rows, S segments.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Packing = Literal["split", "whole", "single"]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """Rows as stretches of documents, row after row."""

    ends: Ints
    """[R]: one past the last segment of each row."""

    document: Ints
    """[S]: position in the block."""

    start: Ints
    """[S]: first pair of the stretch, counted in the document."""

    length: Ints
    """[S]: pairs of the stretch."""

    @property
    def count(self) -> int:
        """Number of rows."""
        return len(self.ends)


def too_long(lengths_D: Ints, seq_len: int, packing: Packing) -> Ints:
    """Documents that no row can take."""
    if packing != "whole":
        return np.zeros(0, dtype=np.int64)
    return np.flatnonzero(lengths_D > seq_len)


def count_rows(lengths_D: Ints, seq_len: int, packing: Packing) -> int:
    """Number of rows that `pack` makes of these documents in any order."""
    if packing == "split":
        return -(-int(lengths_D.sum()) // seq_len)
    if packing == "single":
        return int((-(-lengths_D // seq_len)).sum())
    rows_D = best_fit_decreasing(lengths_D, seq_len)
    return int(rows_D.max(initial=-1)) + 1


def pack(lengths_D: Ints, seq_len: int, packing: Packing, *, document_order: Ints) -> Rows:
    """Rows of one block.

    `document_order` is a permutation of the documents. `split` lays them end to end in that order,
    `single` one after the other; under `whole` it decides nothing, since lengths alone say which
    documents share a row.
    """
    if packing == "split":
        return _split(lengths_D, seq_len, document_order)
    if packing == "single":
        return _single(lengths_D, seq_len, document_order)
    return _whole(lengths_D, seq_len)


def best_fit_decreasing(lengths_D: Ints, seq_len: int) -> Ints:
    """[D]: row of each document, -1 where it is empty or longer than a row.

    Longest first, each into the fullest row that still takes it (Johnson 1974: at most 11/9 of
    the least number of rows, and a few more). A bit per amount of free space says which exist, so
    each document costs a shift instead of a search through rows.
    """
    row_of = np.full(len(lengths_D), -1, dtype=np.int64)
    rows_with: dict[int, list[int]] = {}
    free_bits, rows = 0, 0
    for document in np.argsort(-lengths_D, kind="stable").tolist():
        length = int(lengths_D[document])
        if not 0 < length <= seq_len:
            continue
        fitting = free_bits >> length
        if fitting:
            free = length + (fitting & -fitting).bit_length() - 1
            row = rows_with[free].pop()
            if not rows_with[free]:
                free_bits ^= 1 << free
        else:
            free, row, rows = seq_len, rows, rows + 1
        row_of[document] = row
        if left := free - length:
            rows_with.setdefault(left, []).append(row)
            free_bits |= 1 << left
    return row_of


def _split(lengths_D: Ints, seq_len: int, order: Ints) -> Rows:
    order = order[lengths_D[order] > 0]
    ends = np.cumsum(lengths_D[order])
    total = int(ends[-1]) if len(ends) else 0
    cuts = np.union1d(ends, np.arange(seq_len, total, seq_len))
    starts = np.concatenate(([0], cuts[:-1])) if total else cuts
    which = np.searchsorted(ends, starts, side="right")
    begins = ends - lengths_D[order]
    return Rows(
        ends=np.searchsorted(starts, np.arange(seq_len, total + seq_len, seq_len)),
        document=order[which],
        start=starts - begins[which],
        length=cuts - starts,
    )


def _whole(lengths_D: Ints, seq_len: int) -> Rows:
    row_of = best_fit_decreasing(lengths_D, seq_len)
    packed = np.flatnonzero(row_of >= 0)
    packed = packed[np.argsort(row_of[packed], kind="stable")]
    count = int(row_of.max(initial=-1)) + 1
    return Rows(
        ends=np.searchsorted(row_of[packed], np.arange(count), side="right"),
        document=packed,
        start=np.zeros(len(packed), dtype=np.int64),
        length=lengths_D[packed],
    )


def _single(lengths_D: Ints, seq_len: int, order: Ints) -> Rows:
    rows_D = -(-lengths_D[order] // seq_len)
    document = np.repeat(order, rows_D)
    first_row_D = np.cumsum(rows_D) - rows_D
    start = (np.arange(len(document)) - np.repeat(first_row_D, rows_D)) * seq_len
    return Rows(
        ends=np.arange(1, len(document) + 1),
        document=document,
        start=start,
        length=np.minimum(lengths_D[document] - start, seq_len),
    )
