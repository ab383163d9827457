"""Copies of tensors into a payload, chunk by chunk, summed while they are still in cache.

Guarantees, each asserted in tests/trainer/keeping/test_copying.py:
- the payload holds the bits of every piece, whatever its type, shape and strides;
- the checksum is that of the payload as `trainer.keeping.header.Checksum` computes it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from trainer.keeping.header import CHUNK_BYTES, WORD_BYTES, aligned, reduced, weighted
from trainer.keeping.pieces import Placed
from trainer.keeping.slot import Slot


@dataclass(frozen=True)
class Part:
    """Words of one chunk of the payload, and what they are copied from."""

    words: NDArray[np.uint64]
    offset: int
    """Of the first word in the payload, in bytes."""

    target: Tensor | None
    """Where `source` is copied to before the words are summed; None where they lie there by the
    copy of an earlier part."""

    source: Tensor | None


def parts_between(sources: Sequence[Tensor], placed: Sequence[Placed], slot: Slot) -> list[Part]:
    """How `sources`, tensors in host memory in the order of `placed`, get into `slot`.

    It holds as long as each source keeps its memory.
    """
    found = []
    for source, place in zip(sources, placed, strict=True):
        target = slot.payload[place.begin : place.end].view(source.dtype)
        if source.is_contiguous():
            found += _straight(source.view(-1), target, place, slot)
        else:
            found += _scattered(source, target.view(source.shape), place, slot)
    return found


def copy_parts(parts: Sequence[Part]) -> int:
    """Copy and sum; the checksum of the whole payload. Any thread may call it."""
    total = 0
    for part in parts:
        if part.target is not None and part.source is not None:
            part.target.copy_(part.source)
        total += weighted(int(np.add.reduce(part.words)), part.offset)
    return reduced(total)


def _straight(source: Tensor, target: Tensor, place: Placed, slot: Slot) -> list[Part]:
    size = source.element_size()
    return [
        Part(
            _words(slot, begin, end),
            begin,
            target[(begin - place.begin) // size : (end - place.begin) // size],
            source[(begin - place.begin) // size : (end - place.begin) // size],
        )
        for begin, end in _cuts(place)
    ]


def _scattered(source: Tensor, target: Tensor, place: Placed, slot: Slot) -> list[Part]:
    whole, *rest = _cuts(place)
    return [
        Part(_words(slot, *whole), whole[0], target, source),
        *(Part(_words(slot, *cut), cut[0], None, None) for cut in rest),
    ]


def _words(slot: Slot, begin: int, end: int) -> NDArray[np.uint64]:
    return slot.words[begin // WORD_BYTES : aligned(end, WORD_BYTES) // WORD_BYTES]


def _cuts(place: Placed) -> list[tuple[int, int]]:
    """The piece's bytes, cut where chunks of the payload end."""
    cuts, begin = [], place.begin
    while begin < place.end:
        end = min(place.end, (begin // CHUNK_BYTES + 1) * CHUNK_BYTES)
        cuts.append((begin, end))
        begin = end
    return cuts
