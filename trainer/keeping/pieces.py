"""Which blocks of the state one share holds, and where in its payload they lie.

Guarantees, each asserted in tests/trainer/keeping/test_pieces.py:
- pieces do not overlap, and each begins at a word;
- a block that several ranks kept counts once;
- a description read back is the one that was written.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.checkpoint.manifest import Chunk, Manifest, TensorEntry, stored_name
from trainer.checkpoint.shard_file import DTYPE_CODES, DTYPES, Piece
from trainer.checkpoint.share import Share
from trainer.keeping.header import WORD_BYTES, aligned


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A block of a tensor in a payload."""

    name: str
    dtype: str
    """Its safetensors code."""

    whole_shape: tuple[int, ...]
    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    begin: int

    @property
    def end(self) -> int:
        """First byte behind it."""
        count = 1
        for size in self.shape:
            count *= size
        return self.begin + count * DTYPES[self.dtype].itemsize


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a share says about itself."""

    meta: dict[str, Any]
    """The caller's, the same in all shares of a snapshot."""

    stored: tuple[Stored, ...]
    empty: dict[str, tuple[str, tuple[int, ...]]]
    """Code and shape of tensors without elements."""


@dataclass(frozen=True)
class Placed:
    """A piece of this rank's share with its place in the payload."""

    piece: Piece
    begin: int
    end: int


def place_pieces(share: Share) -> list[Placed]:
    """Where each piece of `share` goes; all begin at words."""
    placed, begin = [], 0
    for piece in share.pieces:
        end = begin + piece.end - piece.begin
        placed.append(Placed(piece, begin, end))
        begin = aligned(end, WORD_BYTES)
    return placed


def payload_bytes(placed: Sequence[Placed]) -> int:
    """Bytes of all pieces, a whole number of words."""
    return aligned(placed[-1].end, WORD_BYTES) if placed else 0


def encode_pieces(placed: Sequence[Placed], tensors: Mapping[str, TensorEntry]) -> str:
    """The part of a description that stays the same from snapshot to snapshot, as the inner text
    of a JSON object; `tensors` has at least those of the pieces."""
    rows = [
        [
            p.piece.name,
            DTYPE_CODES[p.piece.dtype],
            list(tensors[p.piece.name].shape),
            list(p.piece.box.offsets),
            list(p.piece.shape),
            p.begin,
        ]
        for p in placed
    ]
    empty = {
        name: [entry.dtype, list(entry.shape)]
        for name, entry in tensors.items()
        if not entry.chunks
    }
    return f'"pieces":{_json(rows)},"empty":{_json(empty)}'


def encode_description(meta: dict[str, Any], pieces: str) -> bytes:
    """A description; `pieces` is what `encode_pieces` returned."""
    return f'{{"meta":{_json(meta)},{pieces}}}'.encode()


def decode_description(text: bytes) -> Description:
    """The description in `text`, whose checksum was found right."""
    document = json.loads(text)
    return Description(
        meta=document["meta"],
        stored=tuple(
            Stored(
                name=name,
                dtype=code,
                whole_shape=tuple(whole),
                offsets=tuple(offsets),
                shape=tuple(shape),
                begin=begin,
            )
            for name, code, whole, offsets, shape, begin in document["pieces"]
        ),
        empty={name: (code, tuple(shape)) for name, (code, shape) in document["empty"].items()},
    )


def parts_of(stored: Iterable[Stored]) -> list[tuple[Stored, int]]:
    """Each block with its number among the blocks of its tensor in this share."""
    seen: dict[str, int] = {}
    numbered = []
    for block in stored:
        part = seen.get(block.name, 0)
        seen[block.name] = part + 1
        numbered.append((block, part))
    return numbered


def names_of(stored: Iterable[Stored]) -> dict[str, Stored]:
    """The blocks of a share by the names under which a `BlockReader` is asked for them."""
    return {stored_name(block.name, part): block for block, part in parts_of(stored)}


def joined(step: int, descriptions: Sequence[tuple[str, Description]]) -> Manifest:
    """All shares of a snapshot as one manifest; each comes with the file name to give it."""
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
    chunks: dict[str, list[Chunk]] = {}
    for file, description in descriptions:
        shapes |= description.empty
        for block, part in parts_of(description.stored):
            shapes[block.name] = (block.dtype, block.whole_shape)
            found = chunks.setdefault(block.name, [])
            # Ranks that hold a block alike may each have kept it.
            if not any((c.offsets, c.shape) == (block.offsets, block.shape) for c in found):
                found.append(Chunk(file, block.offsets, block.shape, part))
    return Manifest(
        step=step,
        files={},
        tensors={
            name: TensorEntry(code, shape, tuple(chunks.get(name, ())))
            for name, (code, shape) in shapes.items()
        },
        meta=descriptions[0][1].meta,
    )


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
