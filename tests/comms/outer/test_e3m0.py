"""The guarantees of comms/outer/e3m0.py, one by one."""

import pytest
import torch

from comms.outer.e3m0 import BLOCK, add_decoded, code_bytes, encode


def _sent(x: torch.Tensor) -> torch.Tensor:
    found = torch.zeros_like(x)
    add_decoded(found, encode(x), 1.0)
    return found


def _tops(x: torch.Tensor) -> torch.Tensor:
    """The largest magnitude of each entry's block."""
    blocks = x.split(BLOCK)
    return torch.cat([block.abs().max().expand(block.numel()) for block in blocks])


@pytest.mark.parametrize("numel", [1, 127, 128, 129, 70_000])
@pytest.mark.parametrize("scale", [1e-20, 1e-3, 1e6])
def test_the_error_is_at_most_a_third_of_an_entry_or_1_in_128_of_the_largest(numel, scale):
    torch.manual_seed(numel)
    x = torch.randn(numel) * scale
    assert encode(x).numel() == code_bytes(numel)
    error = (_sent(x) - x).abs()
    # A bf16 scale is off by 1/256 at most, and moves what is sent and where it is rounded.
    assert bool((error <= torch.maximum(x.abs() / 3, _tops(x) / 128) * (1 + 1 / 64)).all())


def test_powers_of_two_in_range_and_zeros_travel_unchanged():
    x = torch.zeros(3 * BLOCK)
    x[:7] = 2.0 ** torch.arange(7) * 8
    x[7:14] = -x[:7]
    x[BLOCK] = -0.25
    assert torch.equal(_sent(x), x)


def test_what_is_too_small_for_its_block_becomes_zero_or_the_smallest_level():
    x = torch.zeros(BLOCK)
    x[:4] = torch.tensor([64.0, 0.49, 0.51, -0.51])
    assert _sent(x)[:4].tolist() == [64.0, 0.0, 1.0, -1.0]


def test_decoding_adds_a_share():
    x = torch.randn(300)
    total = torch.ones(300)
    add_decoded(total, encode(x), 0.25)
    assert torch.allclose(total, 1 + 0.25 * _sent(x))


def test_four_bits_and_a_scale_per_block_are_all_that_is_sent():
    assert code_bytes(1_000_000) * 8 / 1_000_000 == pytest.approx(4.125, rel=1e-3)
