"""Numbers as they travel: value formats with one scale, and messages of selected entries.

A message is a uint8 tensor whose length depends on sizes alone. A message of a rank whose numbers
are not finite carries a NaN scale, so that every receiver knows.
"""

import torch
from torch import Tensor

from comms.compression.config import ValueFormat
from comms.compression.indices import decode_indices, encode_indices, index_bytes

SCALE_BYTES = 4

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_FP16_TOP = 15
"""Scaled values stay below two to this power, half of what fp16 can hold."""


def value_bytes(count: int, form: ValueFormat) -> int:
    """Bytes of `count` values and their scale."""
    return SCALE_BYTES + count * _DTYPES[form].itemsize


def encode_values(values: Tensor, form: ValueFormat) -> tuple[Tensor, Tensor]:
    """fp32 values as uint8, and the fp32 values that `decode_values` will make of it.

    The scale is a power of two, so it loses nothing, and keeps fp16 from overflowing.
    """
    scale = values.new_ones(())
    if form == "fp16" and values.numel():
        exponent = torch.frexp(values.abs().max()).exponent
        scale = torch.ldexp(scale, (exponent - _FP16_TOP).clamp(-100, 100))
    wire = (values / scale).to(_DTYPES[form])
    code = torch.cat([as_bytes(scale.reshape(1)), as_bytes(wire)])
    return code, wire.float() * scale


def decode_values(code: Tensor, form: ValueFormat) -> Tensor:
    """The fp32 values of an encoded message; NaN where the sender's were not finite."""
    scale = from_bytes(code[:SCALE_BYTES], torch.float32)
    return from_bytes(code[SCALE_BYTES:], _DTYPES[form]).float() * scale


def poisoned(code: Tensor) -> Tensor:
    """`code` with a NaN scale."""
    code = code.clone()
    code[:SCALE_BYTES] = as_bytes(torch.full((1,), torch.nan, device=code.device))
    return code


def sparse_bytes(numel: int, count: int, form: ValueFormat) -> int:
    """Bytes of a message with `count` of `numel` entries."""
    return value_bytes(count, form) + index_bytes(numel, count)


def encode_sparse(
    values: Tensor, indices: Tensor, numel: int, form: ValueFormat
) -> tuple[Tensor, Tensor]:
    """A message of some entries, and the values as receivers will see them."""
    code, seen = encode_values(values, form)
    return torch.cat([code, encode_indices(indices, numel)]), seen


def decode_sparse(code: Tensor, numel: int, count: int, form: ValueFormat) -> tuple[Tensor, Tensor]:
    """Indices and values of a message."""
    end = value_bytes(count, form)
    return decode_indices(code[end:], numel, count), decode_values(code[:end], form)


def as_bytes(tensor: Tensor) -> Tensor:
    """The memory of a contiguous tensor as uint8."""
    return tensor.contiguous().view(torch.uint8)


def from_bytes(code: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 read as `dtype`; copied where it does not begin on that type's boundary."""
    if code.storage_offset() % dtype.itemsize:
        code = code.clone()
    return code.view(dtype)
