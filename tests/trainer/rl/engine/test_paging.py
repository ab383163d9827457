import numpy as np
import pytest

from trainer.rl.engine.paging import plan_reads


def blocks_of_sequences(reads):
    """Per sequence, its blocks in the order of their places."""
    blocks_N = np.arange(len(reads.owner_N)) if reads.blocks_N is None else reads.blocks_N
    blocks_P = [*blocks_N, *np.repeat(reads.blocks_S, reads.owner_SG.shape[1])]
    owner_P = [*reads.owner_N, *reads.owner_SG.ravel()]
    nth_P = [*reads.nth_N, *reads.nth_SG.ravel()]
    found = [{} for _ in range(len(reads.row_BQ) + 1)]
    for block, owner, nth in zip(blocks_P, owner_P, nth_P, strict=True):
        assert owner == len(found) - 1 or nth not in found[owner]
        found[owner][int(nth)] = int(block)
    assert max(map(len, found[:-1])) == reads.most_blocks
    return [[blocks[nth] for nth in range(len(blocks))] for blocks in found[:-1]]


@pytest.mark.parametrize("seed", range(8))
def test_every_sequence_reads_each_of_its_blocks_once_and_in_order(seed):
    random = np.random.default_rng(seed)
    tables, starts, rows = [], [], []
    free = random.permutation(400 if seed % 2 else 60).tolist()
    for _ in range(3):
        prompt = [free.pop() for _ in range(random.integers(0, 3))]
        for _ in range(random.integers(1, 4)):
            start = 4 * len(prompt) + int(random.integers(0, 9))
            count = int(random.integers(1, 4))
            length = -(-(start + count) // 4) - len(prompt)
            # One block more than is read, taken ahead of time.
            tables.append([*prompt, *(free.pop() for _ in range(length + 1))])
            starts.append(start)
            rows.append(count)
    reads = plan_reads(tables, rows, starts, 4)
    expected = [
        table[: -(-(start + count) // 4)]
        for table, start, count in zip(tables, starts, rows, strict=True)
    ]
    assert blocks_of_sequences(reads) == expected


def test_rows_find_their_places_and_positions():
    reads = plan_reads([[0], [1, 2]], [1, 3], [2, 3], 4)
    assert reads.row_BQ.tolist() == [[0, 0, 0], [1, 2, 3]]
    assert reads.place_D.tolist() == [0, 3, 4, 5]
    assert reads.position_BQ.tolist() == [[2, 2, 2], [3, 4, 5]]


def test_a_block_with_several_readers_is_loaded_once():
    reads = plan_reads([[5, 0], [5, 1], [5, 2], [3]], [1] * 4, [4, 5, 6, 0], 4)
    assert reads.blocks_S.tolist() == [5]
    assert reads.owner_SG.tolist() == [[0, 1, 2]]
    assert reads.nth_SG.tolist() == [[0, 0, 0]]


def test_blocks_are_read_in_place_unless_most_of_their_range_is_unused():
    assert plan_reads([[0, 2], [3]], [1, 1], [4, 0], 4).blocks_N is None
    assert plan_reads([[70], [3]], [1, 1], [0, 0], 4).blocks_N.tolist() == [70, 3]
