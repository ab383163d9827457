import pytest
import torch
from torch import nn

from offload.activations.blocks import BlockParts, BlockSwap
from offload.activations.policy import ActivationPolicy
from offload.activations.regions import Region
from offload.activations.rows import RowCheck
from tests.offload.activations.small import forward, make_blocks, open_swap

HALF = ActivationPolicy(kind="swap", alpha=0.5, kept_blocks=0)


def region(swap, fn, x, check, swapped_rows=96):
    return Region(swap, fn, [x], name="pre", swapped_rows=swapped_rows, hold=swap.pack, check=check)


def test_rows_that_round_otherwise_are_taken_from_all_rows(tmp_path):
    """A function whose bits depend on how many rows it gets, as those of some products do."""
    rows_seen = []

    def uneven(rows, x_TD):
        rows_seen.append(rows.stop - rows.start)
        scaled = x_TD * (1.0 + 1e-6 * (rows.stop - rows.start))
        return scaled.exp()

    x = torch.randn(192, 100, requires_grad=True)
    expected = torch.autograd.grad(uneven(slice(0, 192), x).square().sum(), x)[0]
    with open_swap("host", tmp_path) as swap:
        check = RowCheck()
        for _ in range(2):
            rows_seen.clear()
            y = region(swap, uneven, x, check).forward([x])
            swap.drain()
            assert torch.equal(torch.autograd.grad(y.square().sum(), x)[0], expected)
            del y
        assert rows_seen == [192, 192]


def test_rows_that_round_alike_are_recomputed_alone_and_once(tmp_path):
    rows_seen = []

    def even(rows, x_TD):
        rows_seen.append((rows.start, rows.stop))
        return (x_TD * 2.0).exp().sin()

    x = torch.randn(192, 200, requires_grad=True)
    expected = torch.autograd.grad(even(slice(0, 192), x).sum(), x)[0]
    with open_swap("host", tmp_path) as swap:
        check = RowCheck()
        for _ in range(2):
            rows_seen.clear()
            y = region(swap, even, x, check).forward([x])
            swap.drain()
            assert torch.equal(torch.autograd.grad(y.sum(), x)[0], expected)
            del y
        assert rows_seen == [(0, 192), (96, 192)]


def test_recomputation_ends_with_the_last_tensor_that_is_wanted(tmp_path):
    """What follows it, a sum over ranks for instance, would have all ranks take part."""
    ends = []

    def fn(rows, x_TD):
        y_TD = (x_TD * 2.0).exp()
        ends.append(rows.stop - rows.start)
        return y_TD * 3.0

    x = torch.randn(192, 200, requires_grad=True)
    expected = torch.autograd.grad(fn(slice(0, 192), x).sum(), x)[0]
    with open_swap("host", tmp_path) as swap:
        check = RowCheck()
        for _ in range(2):
            ends.clear()
            y = region(swap, fn, x, check, swapped_rows=0).forward([x])
            swap.drain()
            assert torch.equal(torch.autograd.grad(y.sum(), x)[0], expected)
            del y
        assert ends == [192]


def test_nothing_is_recomputed_while_all_is_in_memory(tmp_path):
    calls = []

    def counted(rows, x_TD):
        calls.append(rows)
        return x_TD.exp()

    x = torch.randn(192, 100, requires_grad=True)
    with open_swap("host", tmp_path) as swap:
        y = region(swap, counted, x, RowCheck(), swapped_rows=192).forward([x])
        y.sum().backward()
        del y
    assert len(calls) == 1


def test_random_numbers_are_refused(tmp_path):
    with open_swap("host", tmp_path) as swap:
        blocks = BlockSwap({"host": swap}, num_blocks=1, policy=HALF)
        parts = BlockParts(
            pre=lambda rows, x: nn.functional.dropout(x * 2.0, 0.5).exp(),
            attention=lambda q: q.square(),
            post=lambda rows, x, a: x + a,
        )
        with pytest.raises(RuntimeError, match="must draw no random numbers"):
            blocks.run(0, torch.randn(64, 40, requires_grad=True), parts)


def test_a_function_that_saves_something_else_is_refused(tmp_path):
    def fickle(rows, x_TD):
        return x_TD.exp() if rows.start == 0 else x_TD.exp().sin().exp()

    x = torch.randn(192, 100, requires_grad=True)

    def refuse():
        with pytest.raises(RuntimeError, match="saved 1 tensors in forward and 2"):
            region(swap, fickle, x, RowCheck()).forward([x])

    with open_swap("host", tmp_path) as swap:
        refuse()


def test_tables_that_all_blocks_share_do_not_tie_them_together(tmp_path):
    """Backward of the last block must not recompute the first one for a table both have saved."""
    x, table_TD = torch.randn(192, 48), torch.randn(192, 48)
    blocks, asked = make_blocks(3), []

    def run(index, block, h):
        def pre(rows, x_TD):
            asked.append((index, rows.start))
            return block.pre(rows, x_TD * table_TD[rows])

        return swapper.run(
            index, h, BlockParts(pre=pre, attention=block.attention, post=block.post)
        )

    with open_swap("host", tmp_path) as swap:
        swapper = BlockSwap({"host": swap}, num_blocks=3, policy=HALF)
        for _ in range(2):
            h = x
            for index, block in enumerate(blocks):
                h = run(index, block, h)
            asked.clear()
            h.sum().backward()
            del h
        assert [index for index, _ in asked] == [2, 1, 0]


def test_without_gradients_nothing_is_kept(tmp_path):
    with open_swap("host", tmp_path) as swap, torch.no_grad():
        forward(make_blocks(), torch.randn(50, 48), BlockSwap({"host": swap}, num_blocks=4))
        assert swap.take_stats().stored_bytes == 0
