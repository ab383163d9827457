"""A share says whether it is whole."""

import random

import pytest

from trainer.keeping.header import (
    CHUNK_BYTES,
    Checksum,
    Header,
    ShareDamaged,
    reduced,
    torn,
    unpack,
    weighted,
)

HEADER = Header(
    sequence=4,
    run="0123456789abcdef" * 2,
    generation=3,
    step=120,
    rank=1,
    ranks=4,
    description_bytes=77,
    description_crc32=123,
    payload_begin=8192,
    payload_bytes=64,
    checksum=2**64 - 1,
)


def _sum(payload: bytes) -> int:
    checksum = Checksum()
    checksum.add(payload)
    return checksum.value()


def test_a_header_read_back_is_the_one_written():
    assert unpack(HEADER.packed() + bytes(100)) == HEADER


def test_no_bit_of_a_header_changes_unseen():
    packed = HEADER.packed()
    for bit in range(8 * len(packed)):
        changed = bytearray(packed)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ShareDamaged):
            unpack(bytes(changed))
    with pytest.raises(ShareDamaged, match="does not begin"):
        unpack(packed[:20])


def test_a_share_that_is_being_written_says_so():
    packed = HEADER.packed()
    mark = torn(HEADER.sequence)
    with pytest.raises(ShareDamaged, match="being written"):
        unpack(mark + packed[len(mark) :])
    with pytest.raises(ShareDamaged, match="being written"):
        unpack(torn(0) + bytes(200))


def test_the_checksum_notices_changed_words_and_chunks_that_traded_places():
    payload = random.Random(1).randbytes(3 * CHUNK_BYTES + 64)
    wanted = _sum(payload)
    for position in random.Random(2).sample(range(len(payload)), 200):
        changed = bytearray(payload)
        changed[position] ^= 16
        assert _sum(bytes(changed)) != wanted
    traded = payload[CHUNK_BYTES : 2 * CHUNK_BYTES] + payload[:CHUNK_BYTES]
    assert _sum(traded + payload[2 * CHUNK_BYTES :]) != wanted
    assert _sum(bytes(CHUNK_BYTES) + payload[CHUNK_BYTES:]) != wanted


def test_the_checksum_does_not_depend_on_how_the_payload_arrives():
    payload = random.Random(3).randbytes(2 * CHUNK_BYTES + 8)
    pieces = Checksum()
    for begin in range(0, len(payload), 100_003):
        pieces.add(payload[begin : begin + 100_003])
    assert pieces.value() == _sum(payload)
    assert reduced(weighted(2**64 - 1, 0) + weighted(1, 8)) == 0
    assert _sum(b"") == 0
