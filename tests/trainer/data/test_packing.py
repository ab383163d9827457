import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.packing import best_fit_decreasing, count_rows, pack, too_long

LENGTHS = st.lists(st.integers(0, 70), max_size=60).map(lambda values: np.array(values, np.int64))
SEQ_LENS = st.integers(1, 40)
PACKINGS = st.sampled_from(["split", "whole", "single"])
FEW = settings(deadline=None, max_examples=60)


def order_of(lengths, seed):
    return np.random.default_rng(seed).permutation(len(lengths))


def pairs_of(rows):
    stretches = zip(rows.document.tolist(), rows.start.tolist(), rows.length.tolist(), strict=True)
    return [(d, start + i) for d, start, length in stretches for i in range(length)]


def row_lengths(rows):
    total = np.concatenate(([0], np.cumsum(rows.length)))
    return np.diff(total[rows.ends], prepend=0).tolist()


@FEW
@given(LENGTHS, SEQ_LENS, PACKINGS, st.integers(0, 3))
def test_every_pair_of_every_packed_document_is_in_one_row_once(lengths, seq_len, packing, seed):
    rows = pack(lengths, seq_len, packing, document_order=order_of(lengths, seed))
    left_out = set(too_long(lengths, seq_len, packing).tolist())
    expected = [
        (d, i) for d, n in enumerate(lengths.tolist()) if d not in left_out for i in range(n)
    ]
    assert sorted(pairs_of(rows)) == expected
    assert (rows.length > 0).all()


@FEW
@given(LENGTHS, SEQ_LENS, PACKINGS, st.integers(0, 3))
def test_rows_hold_at_most_seq_len_and_none_is_empty(lengths, seq_len, packing, seed):
    rows = pack(lengths, seq_len, packing, document_order=order_of(lengths, seed))
    assert all(0 < n <= seq_len for n in row_lengths(rows))


@FEW
@given(LENGTHS, SEQ_LENS, st.integers(0, 3))
def test_split_fills_every_row_but_the_last(lengths, seq_len, seed):
    rows = pack(lengths, seq_len, "split", document_order=order_of(lengths, seed))
    assert all(n == seq_len for n in row_lengths(rows)[:-1])
    assert len(too_long(lengths, seq_len, "split")) == 0


@FEW
@given(LENGTHS, SEQ_LENS, st.integers(0, 3))
def test_single_puts_one_document_in_a_row_and_cuts_none_that_fits(lengths, seq_len, seed):
    rows = pack(lengths, seq_len, "single", document_order=order_of(lengths, seed))
    assert rows.ends.tolist() == list(range(1, len(rows.document) + 1))
    assert rows.count == count_rows(lengths, seq_len, "single")
    short = lengths[rows.document] <= seq_len
    assert (rows.length[short] == lengths[rows.document][short]).all()


@FEW
@given(LENGTHS, SEQ_LENS)
def test_whole_never_cuts_and_leaves_out_exactly_what_is_longer_than_a_row(lengths, seq_len):
    rows = pack(lengths, seq_len, "whole", document_order=np.arange(len(lengths)))
    assert (rows.start == 0).all()
    assert (rows.length == lengths[rows.document]).all()
    left_out = too_long(lengths, seq_len, "whole").tolist()
    assert left_out == [d for d, n in enumerate(lengths.tolist()) if n > seq_len]
    assert sorted([*rows.document.tolist(), *left_out]) == np.flatnonzero(lengths).tolist()


@FEW
@given(LENGTHS, SEQ_LENS, PACKINGS)
def test_the_number_of_rows_does_not_depend_on_the_order(lengths, seq_len, packing):
    count = count_rows(lengths, seq_len, packing)
    for seed in range(3):
        assert (
            pack(lengths, seq_len, packing, document_order=order_of(lengths, seed)).count == count
        )


@FEW
@given(LENGTHS, SEQ_LENS)
def test_best_fit_decreasing_wastes_little(lengths, seq_len):
    fitting = lengths[lengths <= seq_len]
    rows = int(best_fit_decreasing(fitting, seq_len).max(initial=-1)) + 1
    lower_bound = -(-int(fitting.sum()) // seq_len)
    large = int((2 * fitting > seq_len).sum())
    # Johnson 1974: 11/9 of the optimum and four rows; the optimum is below twice the volume.
    assert max(lower_bound, large) <= rows
    assert rows <= 11 / 9 * (2 * lower_bound + 1) + 4


def test_best_fit_takes_the_fullest_row_that_fits():
    rows = best_fit_decreasing(np.array([7, 6, 3, 4]), 10)
    assert rows[2] == rows[0]
    assert rows[3] == rows[1]


def test_the_same_arguments_give_the_same_rows():
    lengths = np.random.default_rng(0).integers(0, 90, 500)
    order = order_of(lengths, 5)
    for packing in ("split", "whole"):
        first, second = (pack(lengths, 64, packing, document_order=order) for _ in range(2))
        for name in ("ends", "document", "start", "length"):
            assert np.array_equal(getattr(first, name), getattr(second, name))


@pytest.mark.parametrize("packing", ["split", "whole"])
def test_a_large_block_takes_time_nearly_linear_in_its_documents(packing):
    lengths = np.random.default_rng(1).integers(1, 2048, 50_000)
    rows = pack(lengths, 2048, packing, document_order=np.arange(len(lengths)))
    assert int(rows.length.sum()) == int(lengths.sum())
    fill = lengths.sum() / (rows.count * 2048)
    assert fill > 0.99
