"""Where blocks lie in a share, and what the share says about them."""

from itertools import pairwise

from tests.trainer.keeping.shares import mixed_state
from trainer.checkpoint.share import plan_share
from trainer.keeping.header import WORD_BYTES
from trainer.keeping.pieces import (
    decode_description,
    encode_description,
    encode_pieces,
    joined,
    names_of,
    payload_bytes,
    place_pieces,
)


def _share():
    return plan_share(mixed_state(1), None)


def test_pieces_begin_at_words_and_do_not_overlap():
    placed = place_pieces(_share())
    assert all(p.begin % WORD_BYTES == 0 for p in placed)
    assert all(a.end <= b.begin for a, b in pairwise(placed))
    assert payload_bytes(placed) % WORD_BYTES == 0
    assert payload_bytes(placed) >= placed[-1].end
    assert payload_bytes([]) == 0


def test_a_description_read_back_is_the_one_written():
    share = _share()
    placed = place_pieces(share)
    text = encode_description({"step": 7}, encode_pieces(placed, share.tensors))
    description = decode_description(text)
    assert description.meta == {"step": 7}
    assert description.empty == {"nothing": ("F32", (0, 4))}
    found = {s.name: (s.begin, s.end, s.shape) for s in description.stored}
    assert found == {p.piece.name: (p.begin, p.end, p.piece.shape) for p in placed}
    manifest = joined(7, [("share-00000", description)])
    assert manifest.tensors == share.tensors | {
        name: entry.__class__(
            entry.dtype,
            entry.shape,
            tuple(c.__class__("share-00000", c.offsets, c.shape, c.part) for c in entry.chunks),
        )
        for name, entry in share.tensors.items()
    }


def test_several_blocks_of_a_tensor_have_names_of_their_own():
    share = _share()
    stored = decode_description(
        encode_description({}, encode_pieces(place_pieces(share), share.tensors))
    ).stored
    twice = [stored[0], stored[0]]
    assert list(names_of(twice)) == [stored[0].name, f"{stored[0].name}#1"]


def test_a_block_that_several_ranks_kept_counts_once():
    share = _share()
    text = encode_description({}, encode_pieces(place_pieces(share), share.tensors))
    once = joined(1, [("share-00000", decode_description(text))])
    twice = joined(1, [(f"share-0000{n}", decode_description(text)) for n in range(2)])
    assert twice.tensors == once.tensors
