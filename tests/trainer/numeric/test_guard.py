"""Which documents a batch had something of."""

from trainer.data.sequence import PackedSequence, Segment
from trainer.numeric.guard import documents_of


def test_documents_are_told_by_block_in_ranges():
    def sequence(*documents: tuple[int, int]) -> PackedSequence:
        parts = (Segment(block=b, document=d, start=0, length=4) for b, d in documents)
        return PackedSequence(segments=tuple(parts), num_targets=4)

    batch = [sequence((2, 7), (0, 1)), sequence((0, 2), (0, 3), (0, 9)), sequence((0, 3))]
    assert documents_of(batch) == {"0": "1-3,9", "2": "7"}
    assert documents_of([]) == {}
