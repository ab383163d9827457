"""Messages arrive as they were packed, or are refused."""

import pytest
import torch

from comms.weights.blocks import Block
from comms.weights.plan import ITEM_BYTES, Message, Piece
from comms.weights.wire import (
    DTYPES,
    DamagedMessageError,
    Store,
    digest,
    message_bytes,
    pack,
    seal,
    unpack,
)

BLOCKS = {"w": [Block((4, 0), (6, 5))], "s": [Block((), ())]}
WHOLE = {"w": [Block((0, 0), (12, 5))], "s": [Block((), ())]}
TYPES = {"w": "bfloat16", "s": "float32"}
MESSAGE = Message(
    2, 0, (Piece("s", Block((), ()), False), Piece("w", Block((5, 1), (3, 3)), False)), 4 + 18
)


def packed() -> tuple[torch.Tensor, torch.Tensor]:
    w_RC = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    data = torch.full((message_bytes(22),), 255, dtype=torch.uint8)
    own = Store(BLOCKS, {"w": [w_RC], "s": [torch.tensor(2.5)]})
    pack(MESSAGE, TYPES, own.view, version=7, out=data)
    seal(data)
    return data, w_RC


def room() -> dict[str, list[torch.Tensor]]:
    return {"w": [torch.zeros(12, 5, dtype=torch.bfloat16)], "s": [torch.zeros(())]}


def test_pieces_arrive_converted_and_nothing_else_changes():
    data, w_RC = packed()
    assert data.numel() == 24 + 16
    staged = room()
    unpack(MESSAGE, TYPES, Store(WHOLE, staged).views, version=7, data=data)
    expected = torch.zeros(12, 5, dtype=torch.bfloat16)
    expected[5:8, 1:4] = w_RC[1:4, 1:4].bfloat16()
    assert torch.equal(staged["w"][0], expected)
    assert staged["s"][0] == 2.5


def test_any_changed_bit_is_found_before_anything_is_copied():
    for at in range(message_bytes(22)):
        data, _ = packed()
        data[at] ^= 1 << at % 8
        staged = room()
        with pytest.raises(DamagedMessageError, match="rank 2"):
            unpack(MESSAGE, TYPES, Store(WHOLE, staged).views, version=7, data=data)
        assert not staged["w"][0].any()


def test_another_version_is_refused():
    data, _ = packed()
    with pytest.raises(
        DamagedMessageError, match="rank 2 sent version 7 of the weights instead of 8"
    ):
        unpack(MESSAGE, TYPES, Store(WHOLE, room()).views, version=8, data=data)


def test_the_digest_sees_where_words_are():
    words = torch.arange(300_000, dtype=torch.int64)
    moved = words.clone()
    moved[5], moved[131_072 + 5] = words[131_072 + 5], words[5]
    assert digest(words) != digest(moved)
    assert digest(words) != digest(words.roll(1))
    total = sum((2 * i + 1) * i for i in range(1000))
    assert digest(torch.arange(1000, dtype=torch.int64)) == total


def test_local_parts_must_be_those_of_the_channel():
    with pytest.raises(ValueError, match=r"weight w has local parts of shapes \[\(5, 5\)\]"):
        Store(BLOCKS, {"w": [torch.zeros(5, 5)], "s": [torch.zeros(())]})


def test_dtypes_have_the_sizes_that_plans_count_with():
    assert {name: dtype.itemsize for name, dtype in DTYPES.items()} == ITEM_BYTES
