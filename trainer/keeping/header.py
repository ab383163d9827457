"""The first page of a share: whose state it is, of which step, and whether it is whole.

    0     header: the fields of `Header`, then their CRC-32
    4096  description: JSON, {"meta": {...}, "pieces": [...], "empty": [...]}
    ...   payload: the pieces' bytes, from a page boundary on

Guarantees, each asserted in tests/trainer/keeping/test_header.py:
- a header of which any bit differs is not read as one;
- between `torn` and the next `packed` header, the page reads as "being written";
- the checksum of a payload notices every changed word, and chunks that changed places.

The checksum adds up the payload's 64-bit words, each chunk's sum times an odd number of its own,
modulo 2^64. Accidental changes of several words pass with a chance of 2^-64; words that trade
places inside one chunk pass always, which neither memory nor networks do. It is no protection
against intent. Neither torch nor ray.
"""

import struct
import zlib
from dataclasses import dataclass

import numpy as np

PAGE_BYTES = 4096
CHUNK_BYTES = 256 * 1024
"""Bytes copied and summed at a time: few enough to be still in cache for the sum."""

WORD_BYTES = 8

_MAGIC = b"BRAIDKP1"
_FIELDS = struct.Struct("<8sQ16sQQIIQIQQQ")
_CRC = struct.Struct("<I")
_MODULUS = 1 << 64


class ShareDamaged(ValueError):
    """A share is not whole: being written, cut off, or changed."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """One share of one snapshot."""

    sequence: int
    """Goes up with every snapshot written to this file; odd while one is being written."""

    run: str
    """Which run it is of: 32 hexadecimal digits."""

    generation: int
    """Which start of that run."""

    step: int
    rank: int
    ranks: int
    description_bytes: int
    description_crc32: int
    payload_begin: int
    payload_bytes: int
    checksum: int
    """Of the payload."""

    @property
    def total_bytes(self) -> int:
        """Of the file up to the payload's end."""
        return self.payload_begin + self.payload_bytes

    def packed(self) -> bytes:
        """The header as it stands in the file."""
        fields = _FIELDS.pack(
            _MAGIC,
            self.sequence,
            bytes.fromhex(self.run),
            self.generation,
            self.step,
            self.rank,
            self.ranks,
            self.description_bytes,
            self.description_crc32,
            self.payload_begin,
            self.payload_bytes,
            self.checksum,
        )
        return fields + _CRC.pack(zlib.crc32(fields))


def torn(sequence: int) -> bytes:
    """What marks a file as being written; `sequence` is that of the snapshot before."""
    return _MAGIC + struct.pack("<Q", sequence + 1)


def unpack(page: bytes) -> Header:
    """The header in the first bytes of a share. Raises ShareDamaged where it is not whole."""
    if len(page) < _FIELDS.size + _CRC.size or page[: len(_MAGIC)] != _MAGIC:
        raise ShareDamaged("it does not begin as a share of a snapshot does")
    fields = page[: _FIELDS.size]
    values = _FIELDS.unpack(fields)
    if values[1] % 2 == 1:
        raise ShareDamaged("it was being written when its process ended")
    if zlib.crc32(fields) != _CRC.unpack_from(page, _FIELDS.size)[0]:
        raise ShareDamaged("its header's checksum does not match")
    return Header(
        sequence=values[1],
        run=values[2].hex(),
        generation=values[3],
        step=values[4],
        rank=values[5],
        ranks=values[6],
        description_bytes=values[7],
        description_crc32=values[8],
        payload_begin=values[9],
        payload_bytes=values[10],
        checksum=values[11],
    )


def aligned(num_bytes: int, to: int) -> int:
    """The next multiple of `to`."""
    return -(-num_bytes // to) * to


def weighted(word_sum: int, payload_offset: int) -> int:
    """What the words of one chunk, or of a part of it, add to the checksum.

    `payload_offset` is that of any of these words, in bytes.
    """
    return word_sum * (2 * (payload_offset // CHUNK_BYTES) + 1)


def reduced(total: int) -> int:
    """A checksum from the sum of what `weighted` returned."""
    return total % _MODULUS


class Checksum:
    """The checksum of a payload that arrives in blocks."""

    def __init__(self) -> None:
        self._total = 0
        self._offset = 0
        self._rest = b""

    def add(self, block: bytes | memoryview) -> None:
        """Take the payload's next bytes."""
        data = memoryview(self._rest + bytes(block)) if self._rest else memoryview(block)
        whole = len(data) // WORD_BYTES * WORD_BYTES
        begin = 0
        while begin < whole:
            end = min(whole, begin + CHUNK_BYTES - self._offset % CHUNK_BYTES)
            words = np.frombuffer(data[begin:end], dtype=np.uint64)
            self._total += weighted(int(np.add.reduce(words)), self._offset)
            self._offset += end - begin
            begin = end
        self._rest = bytes(data[whole:])

    def value(self) -> int:
        """Of all blocks so far. A payload is a whole number of words."""
        return reduced(self._total)
