"""Numbers of four bits without mantissa: a sign and three bits of exponent, in blocks.

A block of 128 entries shares a bf16 scale, its largest magnitude. An entry is zero or the scale
times 1, 1/2, ..., 1/64, whichever is nearest (arXiv 2501.18512, section 3.3).

Guarantees, each asserted in tests/comms/outer/test_e3m0.py:
- the error of an entry is at most a third of it, or 1/128 of its block's largest, up to the
  rounding of the scale;
- powers of two within a block's range travel unchanged;
- zeros stay zero, and a shorter last block is as exact as the others.
"""

import torch
from torch import Tensor

BLOCK = 128
"""Entries that share a scale."""

_SCALE_BYTES = 2
_LEVELS = 7
_TOP = float(2 ** (_LEVELS - 1))
_MANTISSA_BITS = 23
_HALF_MANTISSA = 1 << (_MANTISSA_BITS - 1)
_BEFORE_ONE = 126
"""Exponent field of the float below 1, so that code 1 stands for 1."""


def code_bytes(numel: int) -> int:
    """Bytes of `numel` entries: scales, then two entries per byte."""
    blocks = -(-numel // BLOCK)
    return blocks * (_SCALE_BYTES + BLOCK // 2)


def encode(x: Tensor) -> Tensor:
    """The code of a finite fp32 vector, as uint8 on its device."""
    blocks = -(-x.numel() // BLOCK)
    x_BS = torch.nn.functional.pad(x, (0, blocks * BLOCK - x.numel())).view(blocks, BLOCK)
    scale_B1 = x_BS.abs().amax(dim=1, keepdim=True).to(torch.bfloat16)
    # An empty block must not be divided by zero.
    divisor_B1 = scale_B1.float().clamp_(min=torch.finfo(torch.float32).tiny)
    scaled_BS = x_BS / divisor_B1 * _TOP
    bits_BS = scaled_BS.abs().view(torch.int32)
    # Half a mantissa carries into the exponent exactly where the next power of two is nearer.
    codes_BS = ((bits_BS + _HALF_MANTISSA) >> _MANTISSA_BITS) - _BEFORE_ONE
    codes_BS = codes_BS.clamp_(1, _LEVELS).mul_(scaled_BS.abs() >= 0.5)
    codes_BS |= (scaled_BS < 0).int() << 3
    pairs_BS = codes_BS.view(blocks, BLOCK // 2, 2).to(torch.uint8)
    packed = pairs_BS[..., 0] | (pairs_BS[..., 1] << 4)
    return torch.cat([scale_B1.flatten().view(torch.uint8), packed.flatten()])


def decode(code: Tensor, numel: int) -> Tensor:
    """The fp32 entries of a code of `numel` entries."""
    blocks = -(-numel // BLOCK)
    scales = blocks * _SCALE_BYTES
    scale_B1 = code[:scales].clone().view(torch.bfloat16).float().view(blocks, 1)
    packed = code[scales:].view(blocks, BLOCK // 2, 1)
    codes_BS = torch.cat([packed & 15, packed >> 4], dim=2).view(blocks, BLOCK).int()
    size_BS = codes_BS & _LEVELS
    bits_BS = ((size_BS + _BEFORE_ONE) << _MANTISSA_BITS) | ((codes_BS & 8) << 28)
    values_BS = bits_BS.view(torch.float32) * (size_BS > 0)
    return (values_BS * (scale_B1 / _TOP)).flatten()[:numel]
