import itertools
import random

import pytest

from offload.disk.extents import PAGE_BYTES, Extent, Extents, pieces


@pytest.mark.parametrize("files", [1, 2, 3])
def test_pieces_cover_a_record_once_within_stripes(files):
    stripe = 4 * PAGE_BYTES
    used = set()
    for start, pages in ((0, 3), (3, 14), (17, 1), (18, 30)):
        at = 0
        extent = Extent(start * PAGE_BYTES, pages * PAGE_BYTES)
        for piece in pieces(extent, files=files, stripe_bytes=stripe):
            assert piece.record_offset == at
            assert piece.file_offset // stripe == (piece.file_offset + piece.length - 1) // stripe
            assert piece.file == (extent.start + at) // stripe % files
            place = {(piece.file, piece.file_offset + i) for i in range(0, piece.length, 4096)}
            assert not place & used
            used |= place
            at += piece.length
        assert at == extent.length


def test_records_never_overlap_and_released_bytes_are_used_again():
    random.seed(0)
    extents = Extents(64 * PAGE_BYTES)
    held: list[Extent] = []
    for _ in range(500):
        if held and random.random() < 0.5:
            extents.release(held.pop(random.randrange(len(held))))
        else:
            pages = random.randint(1, 6)
            if extents.free_bytes >= 40 * PAGE_BYTES:
                held.append(extents.allocate(pages * PAGE_BYTES))
        ordered = sorted(held, key=lambda extent: extent.start)
        for before, after in itertools.pairwise(ordered):
            assert before.start + before.length <= after.start
    for extent in held:
        extents.release(extent)
    assert extents.allocate(64 * PAGE_BYTES) == Extent(0, 64 * PAGE_BYTES)


def test_mistakes_are_refused():
    extents = Extents(2 * PAGE_BYTES)
    with pytest.raises(ValueError, match="whole pages"):
        extents.allocate(100)
    record = extents.allocate(2 * PAGE_BYTES)
    with pytest.raises(RuntimeError, match="0 of 8192 are free; give it more capacity_bytes"):
        extents.allocate(PAGE_BYTES)
    extents.release(record)
    with pytest.raises(ValueError, match="released before"):
        extents.release(record)
