"""Numbers as they travel: value formats with one scale, and messages of selected entries.

A message is a uint8 tensor whose length depends on sizes alone. A message of a rank whose numbers
are not finite carries a NaN scale, so that every receiver knows. Formats of 8 and 4 bits have
further scales, one per block, and are rounded to the nearest: the rest is the sender's to keep.
"""

from typing import get_args

import torch
from torch import Tensor

from comms.compression.blocks import BlockCodec
from comms.compression.config import BlockFormat, ValueFormat
from comms.compression.indices import decode_indices, encode_indices, index_bytes
from comms.compression.raw import as_bytes, from_bytes

SCALE_BYTES = 4

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_CODECS: dict[str, BlockCodec] = {name: BlockCodec(name) for name in get_args(BlockFormat)}
_FP16_TOP = 15
"""Scaled values stay below two to this power, half of what fp16 can hold."""


def value_bytes(count: int, form: ValueFormat) -> int:
    """Bytes of `count` values and their scale."""
    if form in _CODECS:
        return SCALE_BYTES + _CODECS[form].code_bytes(count)
    return SCALE_BYTES + count * _DTYPES[form].itemsize


def encode_values(values: Tensor, form: ValueFormat) -> tuple[Tensor, Tensor]:
    """fp32 values as uint8, and the fp32 values that `decode_values` will make of it.

    The scale is a power of two, so it loses nothing, and keeps fp16 from overflowing.
    """
    scale = values.new_ones(())
    if form in _CODECS:
        code = _CODECS[form].encode(values.clone(), values.numel())
        code = torch.cat([as_bytes(scale.reshape(1)), code])
        return code, decode_values(code, form, values.numel())
    if form == "fp16" and values.numel():
        exponent = torch.frexp(values.abs().max()).exponent
        scale = torch.ldexp(scale, (exponent - _FP16_TOP).clamp(-100, 100))
    wire = (values / scale).to(_DTYPES[form])
    code = torch.cat([as_bytes(scale.reshape(1)), as_bytes(wire)])
    return code, wire.float() * scale


def decode_values(code: Tensor, form: ValueFormat, count: int) -> Tensor:
    """The `count` fp32 values of an encoded message; NaN where the sender's were not finite."""
    scale = from_bytes(code[:SCALE_BYTES], torch.float32)
    if form in _CODECS:
        found = torch.zeros(count, device=code.device)
        _CODECS[form].decode(code[SCALE_BYTES:], found, count)
        return found.mul_(scale)
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
    return decode_indices(code[end:], numel, count), decode_values(code[:end], form, count)
