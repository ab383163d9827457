import numpy as np
import pytest

from trainer.data.rows import UNKNOWN, RowOrder, RowPlace

ROWS = np.array([3, 0, 5, 1, 4, 2, 0, 6], dtype=np.int32)


def place(order, position, rows=ROWS):
    found = order.find(position, rows, ready=int((rows != UNKNOWN).sum()))
    assert isinstance(found, RowPlace)
    return found


@pytest.mark.parametrize("group_size", [1, 2, 3, 8, 20])
@pytest.mark.parametrize("seed", [0, 5])
def test_each_row_of_each_block_is_found_once_per_epoch(group_size, seed):
    order = RowOrder(len(ROWS), seed=seed, group_size=group_size)
    total = int(ROWS.sum())
    for epoch in range(3):
        found = [place(order, epoch * total + i) for i in range(total)]
        assert {p.epoch for p in found} == {epoch}
        groups = range(-(-len(ROWS) // group_size))
        sizes = [int(ROWS[order.blocks(epoch, g)].sum()) for g in groups]
        expected = [(g, r, size - r) for g, size in enumerate(sizes) for r in range(size)]
        assert [(p.group, p.row, p.left) for p in found] == expected
        blocks = np.concatenate([order.blocks(epoch, g) for g in groups])
        assert sorted(blocks.tolist()) == list(range(len(ROWS)))


def test_leading_groups_that_are_ready_are_found_where_they_are_in_the_end():
    full = RowOrder(len(ROWS), seed=2, group_size=2)
    growing = RowOrder(len(ROWS), seed=2, group_size=2)
    rows = np.full_like(ROWS, UNKNOWN)
    for group in (0, 2, 1, 3):
        blocks = full.blocks(0, group)
        rows[blocks] = ROWS[blocks]
        ready = int((rows != UNKNOWN).sum())
        leading = {0: 1, 2: 1, 1: 3, 3: 4}[group]
        known = sum(int(ROWS[full.blocks(0, g)].sum()) for g in range(leading))
        found = [place(growing, i, rows) for i in range(known)]
        assert found == [place(full, i) for i in range(known)]
        if leading < 4:
            assert growing.find(known, rows, ready=ready) == leading


def test_a_place_in_a_late_epoch_needs_no_walk_there():
    order = RowOrder(len(ROWS), seed=0, group_size=3)
    total = int(ROWS.sum())
    assert place(order, 10**9 * total + 4).epoch == 10**9
