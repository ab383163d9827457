import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.blocks import BlockBuilder

SIZES = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 50)), max_size=40)
FEW = settings(deadline=None, max_examples=50)


def build(sizes, block_bytes):
    builder = BlockBuilder(block_bytes)
    at = {}
    for file, size in sorted(sizes):
        start = at.get(file, 0)
        builder.add(file, start, start + size, first=start, size_bytes=size)
        at[file] = start + size
    return builder.finish()


def block_sizes(blocks):
    spans = [blocks.spans_of(b) for b in range(blocks.count)]
    return [int((s["stop"] - s["start"]).sum()) for s in spans]


@FEW
@given(SIZES, st.integers(1, 120))
def test_every_stretch_is_in_one_block_in_source_order(sizes, block_bytes):
    blocks = build(sizes, block_bytes)
    found = [
        (int(s["file"]), byte)
        for b in range(blocks.count)
        for s in blocks.spans_of(b)
        for byte in range(s["start"], s["stop"])
    ]
    totals = {file: sum(n for f, n in sizes if f == file) for file, _ in sizes}
    assert found == [(file, byte) for file in sorted(totals) for byte in range(totals[file])]


@FEW
@given(SIZES, st.integers(1, 120))
def test_all_blocks_but_the_last_are_full(sizes, block_bytes):
    full = block_sizes(build(sizes, block_bytes))[:-1]
    assert all(block_bytes <= size < block_bytes + 50 for size in full)


@FEW
@given(SIZES, st.integers(1, 120))
def test_the_same_stretches_give_the_same_blocks(sizes, block_bytes):
    first, second = build(sizes, block_bytes), build(sizes, block_bytes)
    assert np.array_equal(first.spans, second.spans)
    assert np.array_equal(first.ends, second.ends)


def test_neighbouring_stretches_become_one_span():
    blocks = build([(0, 10), (0, 10), (1, 5)], 1000)
    assert blocks.spans.tolist() == [(0, 0, 20, 0), (1, 0, 5, 0)]
