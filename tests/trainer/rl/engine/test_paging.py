import numpy as np
import pytest

from trainer.rl.engine.paging import OUT_OF_REACH, plan_reads


def blocks_and_positions(reads):
    """Per sequence, (block, position of its first key) in the order of its parts."""
    blocks_N = np.arange(len(reads.owner_N)) if reads.blocks_N is None else reads.blocks_N
    readers = reads.owner_SG.shape[1]
    blocks_P = [*blocks_N, *np.repeat(reads.blocks_S, readers)]
    owner_P = [*reads.owner_N, *reads.owner_SG.ravel()]
    first_P = [*reads.first_N, *reads.first_SG.ravel()]
    found = []
    for sequence, parts in enumerate(reads.parts_BL):
        unique = list(dict.fromkeys(parts.tolist()))
        assert all(owner_P[part] == sequence for part in unique)
        found.append([(int(blocks_P[part]), int(first_P[part])) for part in unique])
    listed = {part for parts in reads.parts_BL for part in parts.tolist()}
    others = set(range(len(owner_P))) - listed
    assert all(first_P[part] == OUT_OF_REACH for part in others)
    return found


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
        [(block, 4 * i) for i, block in enumerate(table[: -(-(start + count) // 4)])]
        for table, start, count in zip(tables, starts, rows, strict=True)
    ]
    assert blocks_and_positions(reads) == expected


def test_rows_find_their_places_and_positions():
    reads = plan_reads([[0], [1, 2]], [1, 3], [2, 3], 4)
    assert reads.rows_each == 3
    assert reads.row_BQ.tolist() == [[0, 0, 0], [1, 2, 3]]
    assert reads.place_D.tolist() == [0, 3, 4, 5]
    assert reads.position_BQ.tolist() == [[2, 2, 2], [3, 4, 5]]


def test_a_block_with_several_readers_is_loaded_once():
    reads = plan_reads([[5, 0], [5, 1], [5, 2], [3]], [1] * 4, [4, 5, 6, 0], 4)
    assert reads.blocks_S.tolist() == [5]
    assert reads.owner_SG.tolist() == [[0, 1, 2]]
    assert reads.first_SG.tolist() == [[0, 0, 0]]


def test_blocks_are_read_in_place_unless_most_of_their_range_is_unused():
    assert plan_reads([[0, 2], [3]], [1, 1], [4, 0], 4).blocks_N is None
    assert plan_reads([[70], [3]], [1, 1], [0, 0], 4).blocks_N.tolist() == [70, 3]
