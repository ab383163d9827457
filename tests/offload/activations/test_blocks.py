import pytest
import torch

from offload.activations.blocks import ROW_GRANULE, BlockParts, BlockSwap, swapped_rows
from offload.activations.policy import KEEP, RECOMPUTE, SELECTIVE, ActivationPolicy
from offload.activations.rounding import RoundingBuffers
from tests.offload.activations.small import (
    forward,
    make_blocks,
    open_swap,
    same_bits,
    train,
)


def swap_of(alpha, tier="host", kept_blocks=1):
    return ActivationPolicy(kind="swap", alpha=alpha, tier=tier, kept_blocks=kept_blocks)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tokens", [1, 131, 200])
def test_every_policy_gives_the_same_gradients(tmp_path, tokens, dtype):
    x = torch.randn(tokens, 48).to(dtype)
    reference = make_blocks(dtype=dtype)
    expected = train(reference, lambda: forward(reference, x))
    policies = [KEEP, RECOMPUTE, SELECTIVE, *(swap_of(a, "disk") for a in (0.0, 0.3, 0.64, 1.0))]
    for policy in policies:
        with open_swap("disk", tmp_path, targets=RoundingBuffers()) as swap:
            blocks = make_blocks(dtype=dtype)
            runner = BlockSwap({"disk": swap}, num_blocks=len(blocks), policy=policy)
            found = train(blocks, lambda b=blocks, r=runner: forward(b, x, r))
            assert same_bits(found, expected), policy


def test_the_policy_may_change_every_step(tmp_path):
    x = torch.randn(150, 48)
    reference, blocks = make_blocks(), make_blocks()
    expected = train(reference, lambda: forward(reference, x), steps=6)
    policies = iter([swap_of(0.5), KEEP, swap_of(1.0), SELECTIVE, swap_of(0.0), swap_of(0.5)])
    with open_swap("host", tmp_path) as swap:
        runner = BlockSwap({"host": swap}, num_blocks=len(blocks))

        def loss():
            runner.policy = next(policies)
            return forward(blocks, x, runner)

        assert same_bits(train(blocks, loss, steps=6), expected)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_what_moves_and_what_is_recomputed(tmp_path, alpha):
    tokens, blocks, x = 256, make_blocks(), torch.randn(256, 48, requires_grad=True)
    with open_swap("host", tmp_path) as swap:
        runner = BlockSwap({"host": swap}, num_blocks=len(blocks), policy=swap_of(alpha))
        loss = forward(blocks, x * 1.0, runner)
        stored = swap.take_stats().stored_bytes
        loss.backward()
        stats = swap.take_stats()
        del loss
        # Whole: input, attention output, logarithm per head. Others: both norms with their scales,
        # queries and keys before and after their positions' factor, values, the stream after
        # attention, gate, its activation, up and their product.
        whole = 2 * 48 + 3
        others = stored // 3 // 4 // tokens - whole
        if alpha == 1.0:
            assert others > 8 * 48
            assert stats.recomputed_bytes == 0
        elif alpha == 0.0:
            assert others == 0
            assert stats.recomputed_bytes > 3 * 4 * tokens * 8 * 48
        assert stats.fetched_bytes + stats.forwarded_bytes >= stored
        assert all(block.attended == 1 for block in blocks)


def test_recomputation_of_a_block_repeats_attention_and_keeps_its_input_alone(tmp_path):
    blocks, x = make_blocks(), torch.randn(100, 48, requires_grad=True)
    with open_swap("host", tmp_path) as swap:
        runner = BlockSwap({"host": swap}, num_blocks=4, policy=RECOMPUTE)
        forward(blocks, x, runner).backward()
        assert swap.take_stats().stored_bytes == 0
    assert all(block.attended == 2 for block in blocks)


def test_the_last_blocks_stay(tmp_path):
    blocks, x = make_blocks(), torch.randn(100, 48)
    with open_swap("host", tmp_path) as swap:
        runner = BlockSwap({"host": swap}, num_blocks=4, policy=swap_of(1.0, kept_blocks=4))
        forward(blocks, x, runner).backward()
        assert swap.take_stats().stored_bytes == 0


def test_a_part_that_mixes_tokens_leaves_whole(tmp_path):
    torch.manual_seed(0)
    weight = torch.randn(30, 30, requires_grad=True)

    def mixing(rows, x_TD, a_TD):
        return (x_TD + a_TD).softmax(dim=0) @ weight

    parts = BlockParts(
        pre=lambda rows, x: (x @ weight).tanh(),
        attention=lambda q: q.cumsum(0).sin(),
        post=mixing,
        split_post=False,
    )
    x = torch.randn(90, 30, requires_grad=True)
    expected = torch.autograd.grad(parts.plain(x).square().sum(), [x, weight])
    with open_swap("host", tmp_path) as swap:
        runner = BlockSwap({"host": swap}, num_blocks=9, policy=swap_of(0.4))
        found = torch.autograd.grad(runner.run(0, x, parts).square().sum(), [x, weight])
        assert same_bits(list(found), list(expected))


def test_autocast_is_repeated(tmp_path):
    x = torch.randn(140, 48)

    def loss(blocks, runner=None):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return forward(blocks, x, runner)

    reference, blocks = make_blocks(), make_blocks()
    expected = train(reference, lambda: loss(reference))
    with open_swap("host", tmp_path) as swap:
        runner = BlockSwap({"host": swap}, num_blocks=4, policy=swap_of(0.3))
        assert same_bits(train(blocks, lambda: loss(blocks, runner)), expected)


def test_a_tier_that_is_not_open_is_named(tmp_path):
    with open_swap("host", tmp_path) as swap:
        runner = BlockSwap({"host": swap}, num_blocks=4, policy=swap_of(0.5, "disk"))
        with pytest.raises(ValueError, match="swaps to disk, but only host was opened"):
            forward(make_blocks(), torch.randn(10, 48), runner)
    with pytest.raises(ValueError, match="at least one tier"):
        BlockSwap({}, num_blocks=1)


@pytest.mark.parametrize("rows", [1, 63, 128, 1000])
def test_rows_come_in_granules(rows):
    assert swapped_rows(rows, 0.0) == 0
    assert swapped_rows(rows, 1.0) == rows
    half = swapped_rows(rows, 0.5)
    assert abs(half - rows / 2) <= ROW_GRANULE
    assert rows < 2 * ROW_GRANULE or half % ROW_GRANULE == 0
