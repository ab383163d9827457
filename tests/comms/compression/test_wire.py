"""Values travel in the format asked for, and senders know what receivers see."""

import pytest
import torch

from comms.compression.wire import (
    decode_sparse,
    decode_values,
    encode_sparse,
    encode_values,
    poisoned,
    sparse_bytes,
    value_bytes,
)

PRECISION = {"fp32": 0.0, "bf16": 2**-8, "fp16": 2**-11}


@pytest.mark.parametrize("form", list(PRECISION))
@pytest.mark.parametrize("size", [1e-30, 1e-6, 1.0, 1e30])
def test_any_magnitude_survives(form, size):
    values = torch.randn(1001, generator=torch.Generator().manual_seed(0)) * size
    code, seen = encode_values(values, form)
    assert code.numel() == value_bytes(1001, form)
    assert torch.equal(decode_values(code, form, 1001), seen)
    # Entries far below the largest one lose bits in fp16, but never more than 2**-26 of that.
    torch.testing.assert_close(
        seen, values, rtol=PRECISION[form], atol=float(values.abs().max()) * 2**-26
    )


@pytest.mark.parametrize(("form", "bits", "error"), [("int8", 8, 0.01), ("fp4", 4, 0.2)])
def test_few_bits_take_few_bytes_and_come_close(form, bits, error):
    values = torch.randn(1001, generator=torch.Generator().manual_seed(0))
    before = values.clone()
    code, seen = encode_values(values, form)
    assert code.numel() == value_bytes(1001, form) < 1001 * bits / 8 * 1.25
    assert torch.equal(decode_values(code, form, 1001), seen)
    assert torch.equal(values, before)
    assert float((seen - values).norm()) < error * float(values.norm())
    assert bool(decode_values(poisoned(code), form, 1001).isnan().all())


def test_a_message_holds_entries_and_tells_of_poison():
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    indices = torch.arange(7, 10_000, 101)
    code, seen = encode_sparse(x[indices], indices, 10_000, "fp16")
    assert code.numel() == sparse_bytes(10_000, indices.numel(), "fp16")
    found, values = decode_sparse(code, 10_000, indices.numel(), "fp16")
    assert torch.equal(found, indices)
    assert torch.equal(values, seen)
    _, values = decode_sparse(poisoned(code), 10_000, indices.numel(), "fp16")
    assert bool(values.isnan().all())


def test_zeros_travel():
    for form in PRECISION:
        assert not encode_values(torch.zeros(5), form)[1].any()
