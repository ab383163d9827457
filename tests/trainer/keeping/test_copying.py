"""What is copied is what was there, and the checksum is that of what was copied."""

import torch

from tests.trainer.keeping.shares import RUN, mixed_state
from trainer.checkpoint.share import plan_share
from trainer.keeping.copying import copy_parts, parts_between
from trainer.keeping.header import CHUNK_BYTES, Checksum
from trainer.keeping.pieces import payload_bytes, place_pieces
from trainer.keeping.slot import Owner, Slot


def test_every_bit_arrives_and_is_summed(tmp_path):
    state = mixed_state(3)
    placed = place_pieces(plan_share(state, None))
    size = payload_bytes(placed)
    assert size > 3 * CHUNK_BYTES
    owner = Owner(run=RUN, generation=1, rank=0, ranks=1)
    slot = Slot(tmp_path / "slot-0", owner, description_bytes=10, payload_bytes=size)
    sources = [place.piece.box.of(state[place.piece.name]) for place in placed]
    parts = parts_between(sources, placed, slot)
    assert all(part.words.nbytes <= CHUNK_BYTES for part in parts)
    found = copy_parts(parts)
    wanted = Checksum()
    wanted.add(slot.payload.numpy().data)
    assert found == wanted.value()
    for place, source in zip(placed, sources, strict=True):
        there = slot.payload[place.begin : place.end].view(source.dtype).view(source.shape)
        assert torch.equal(there, source)
    state["turned"][5, 5] += 1
    assert copy_parts(parts) != found
