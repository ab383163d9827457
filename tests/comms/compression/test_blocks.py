"""The guarantees of comms/compression/blocks.py, one by one."""

import pytest
import torch

from comms.compression.blocks import BlockCodec

FORMATS = ["int8", "fp8", "fp4"]
STEP = {"int8": 1 / 127, "fp8": 1 / 14, "fp4": 1 / 3}
"""The largest step, as a share of a block's largest entry."""

SMALL = {"int8": 1 / 127, "fp8": 2**-9 / 448, "fp4": 0.5 / 6}
"""The smallest step."""


def _vector(numel: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(numel)
    return torch.randn(numel, generator=generator) * 10.0 ** torch.randint(
        -6, 3, (numel,), generator=generator
    )


def _round_trip(
    form: str, x: torch.Tensor, numel: int, randomness: torch.Generator | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    codec, left = BlockCodec(form), x.clone()
    code = codec.encode(left, numel, randomness)
    assert code.numel() == codec.code_bytes(numel)
    assert codec.finite(code, numel)
    seen = torch.zeros_like(x)
    codec.decode(code, seen, numel)
    return seen, left


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("numel", "padded"), [(1, 256), (100_000, 100_000), (70_001, 80_128)])
def test_what_is_seen_and_left_adds_up(form, numel, padded):
    x = _vector(numel)
    for randomness in (None, torch.Generator().manual_seed(0)):
        seen, left = _round_trip(form, x, padded, randomness)
        torch.testing.assert_close(seen + left, x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("form", FORMATS)
def test_the_error_is_at_most_a_step(form):
    codec, x = BlockCodec(form), _vector(64 * 256)
    largest = x.view(-1, codec.block).abs().amax(1, keepdim=True)
    for randomness, steps in ((None, 0.5), (torch.Generator().manual_seed(0), 1.0)):
        _, left = _round_trip(form, x, x.numel(), randomness)
        share = left.view(-1, codec.block).abs() / largest
        # Up to the scale's own rounding, of 8 bits, which cuts at the largest entry.
        assert float(share.max()) <= steps * STEP[form] * 1.01 + 2**-8


@pytest.mark.parametrize("form", FORMATS)
def test_rounding_is_right_on_average(form):
    codec = BlockCodec(form)
    x, draws = torch.linspace(-1, 1, codec.block), 4000
    seen, _ = _round_trip(
        form, x.repeat(draws), x.numel() * draws, torch.Generator().manual_seed(3)
    )
    mean = seen.view(draws, -1).mean(0)
    # Five standard deviations of a rounding to one of two neighbours, and the bias allowed.
    bound = STEP[form] * (0.5 * 5 / draws**0.5 + 0.01) + 2**-8
    assert float((mean - x)[1:-1].abs().max()) <= bound


@pytest.mark.parametrize("form", FORMATS)
def test_zeros_stay_zero_and_tops_are_reached(form):
    codec = BlockCodec(form)
    seen, _ = _round_trip(form, torch.zeros(600), 600)
    assert not seen.any()
    x = torch.zeros(codec.block)
    x[3], x[4] = 2.0**40, -(2.0**40)
    seen, _ = _round_trip(form, x, x.numel())
    assert seen[3] == -seen[4] == pytest.approx(2.0**40, rel=2**-8)
    assert seen.count_nonzero() == 2


def test_a_poisoned_code_is_not_finite():
    for form in FORMATS:
        codec = BlockCodec(form)
        code = codec.poisoned(1000, torch.device("cpu"))
        assert code.numel() == codec.code_bytes(1000)
        assert not codec.finite(code, 1000)


def test_sizes_are_small():
    assert BlockCodec("int8").code_bytes(256_000) < 256_000 * 1.01
    assert BlockCodec("fp4").code_bytes(256_000) * 8 == 256_000 * 4.5
