import pytest
import torch

from offload.activations.amount import (
    BlockBytes,
    Scope,
    activation_need,
    choose_alpha,
    decoder_block_bytes,
    first_kept,
    fits,
    peak_memory_bytes,
    predict_swap,
)
from offload.host_memory import HostLimits, find_problems
from tests.offload.activations.small import Block

BLOCK = BlockBytes(input_bytes=100, attention_bytes=100, other_bytes=1400)


def alpha(**changes):
    usual = {"forward_s": 1.0, "bytes_per_s": 900.0, "tier_bytes": 10**9, "blocks": 12}
    return choose_alpha(BLOCK, **{**usual, **changes})


def test_alpha_is_the_largest_that_hides_and_fits():
    assert alpha() == pytest.approx(0.5)
    # Ten blocks leave: 620 bytes each, 420 of them others.
    assert alpha(tier_bytes=6200) == pytest.approx(0.3)
    for value in (alpha(), alpha(tier_bytes=6200)):
        assert fits(BLOCK, value, tier_bytes=6200, blocks=12) == (value <= 0.3 + 1e-9)
    assert BLOCK.moved_bytes(alpha()) / 900.0 == pytest.approx(1.0)


def test_alpha_is_a_share():
    assert alpha(bytes_per_s=1e9) == 1.0
    assert alpha(bytes_per_s=1.0) == 0.0
    assert alpha(tier_bytes=0) == 0.0
    assert (
        choose_alpha(
            BlockBytes(input_bytes=1, attention_bytes=1, other_bytes=0),
            forward_s=1.0,
            bytes_per_s=3.0,
            tier_bytes=100,
            blocks=3,
        )
        == 1.0
    )


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.6, 1.0])
def test_copies_are_exposed_where_they_do_not_hide(share):
    found = predict_swap(BLOCK, share, forward_s=1.0, tokenwise_s=0.4, bytes_per_s=900.0, blocks=12)
    assert (found.exposed_s == 0.0) == (share <= alpha())
    assert found.recompute_s == pytest.approx(10 * (1 - share) * 0.4)
    assert found.step_s == pytest.approx(36.0 + found.exposed_s + found.recompute_s)
    assert found.peak_bytes == 4 * BLOCK.total_bytes
    narrow = predict_swap(
        BLOCK,
        share,
        forward_s=1.0,
        tokenwise_s=0.4,
        bytes_per_s=900.0,
        blocks=12,
        kept_blocks=0,
        window_bytes=300,
    )
    assert narrow.peak_bytes == BLOCK.total_bytes + 300


def test_bytes_of_memos_block():
    """Sixteen times tokens times width elements of a classic block become what a gated one has."""
    block = decoder_block_bytes(1000, width=64, kv_width=64, inner_width=192, heads=4)
    assert block.input_bytes == 2 * 1000 * 64
    assert block.attention_bytes == 2 * 1000 * 64 + 4 * 4 * 1000
    assert block.other_bytes == 2 * 1000 * (6 * 64 + 4 * 192)


def test_scopes_that_cannot_be_back_in_time_stay():
    scopes = [Scope(saved_bytes=10, forward_s=1.0)] * 10
    assert first_kept(scopes, bytes_per_s=1e9) == 10
    assert first_kept(scopes, bytes_per_s=0.1) == 0
    rate = 5.0
    kept = first_kept(scopes, bytes_per_s=rate)
    assert 0 < kept < 10
    for index in range(11):
        # Everything before, and its own way out and back, by the time backward is there.
        fits_in = 10 * index + 20 <= rate * (3 * 10.0 - 2 * index)
        assert fits_in == (index < kept) or index >= 10
    faster = [first_kept(scopes, bytes_per_s=rate * k) for k in range(1, 8)]
    assert faster == sorted(faster)


def test_too_little_host_memory_is_found_before_the_start():
    gib = 1 << 30
    block = BlockBytes(input_bytes=gib, attention_bytes=gib, other_bytes=8 * gib)
    limits = HostLimits(free_bytes=40 * gib, disk_bytes=40 * gib)
    assert find_problems([activation_need(block, 0.0, blocks=12)], limits) == []
    (problem,) = find_problems([activation_need(block, 0.5, blocks=12)], limits)
    assert "60 GiB" in problem
    (problem,) = find_problems([activation_need(block, 0.5, blocks=12, disk=True)], limits)
    assert "60 GiB" in problem


def test_peak_memory_is_that_of_the_worse_moment():
    usual = {"kept_bytes": 50, "in_flight_bytes": 20, "fetched_bytes": 30, "transient_bytes": 7}
    assert peak_memory_bytes(**usual, gradient_bytes=10) == 50 + 30 + 7
    assert peak_memory_bytes(**usual, gradient_bytes=90, staging_bytes=3) == 30 + 90 + 7 + 3


def test_sizes_agree_with_what_torch_saves():
    """The formula counts what a gated block with fused norms saves, within a few percent."""
    width, inner, tokens = 64, 160, 128
    saved: dict[int, int] = {}

    def pack(x):
        if not isinstance(x._base if x._base is not None else x, torch.nn.Parameter):
            saved[x.untyped_storage()._cdata] = x.untyped_storage().nbytes()
            held.append(x)
        return x

    held: list[torch.Tensor] = []
    block = Block(width, 4, inner)
    x = torch.randn(tokens, width, requires_grad=True) * 1.0
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        block.parts(split_post=True).plain(x)
    formula = decoder_block_bytes(
        tokens, width=width, kv_width=width, inner_width=inner, heads=4, element_bytes=4
    )
    # The test's block keeps queries and keys before and after its position factor, and the input
    # of both norms in the form that torch's composite norm saves it.
    extra = tokens * 4 * (2 * width + 2 * width)
    assert formula.total_bytes <= sum(saved.values()) <= formula.total_bytes + extra + 64 * tokens
