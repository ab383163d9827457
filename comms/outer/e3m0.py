"""Numbers of four bits without mantissa: a sign and three bits of exponent, in blocks.

A block of 128 entries shares a bf16 scale, its largest magnitude. An entry is zero or the scale
times 1, 1/2, ..., 1/64, whichever is nearest (arXiv 2501.18512, section 3.3).

Guarantees, each asserted in tests/comms/outer/test_e3m0.py:
- the error of an entry is at most a third of it, or 1/128 of its block's largest, up to the
  rounding of the scale;
- powers of two within a block's range travel unchanged;
- zeros stay zero, and a shorter last block is as exact as the others.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

# B blocks of S entries; a byte holds an entry of a block's first half and one of its second.

BLOCK = 128
"""Entries that share a scale."""

_CHUNK = 1 << 16
"""Entries worked on at a time: what a core's own cache holds."""

_SCALE_BYTES = 2
_LEVELS = 7
_TOP = float(2 ** (_LEVELS - 1))
_LEAST_FP16 = 2.0**-14
"""The smallest fp16 of full precision: times this, the level 1 gets the exponent field 1, and what
is below has the field 0, so that dropping the mantissa gives the code."""

_MANTISSA_BITS = 10
_HALF_MANTISSA = 1 << (_MANTISSA_BITS - 1)


def code_bytes(numel: int) -> int:
    """Bytes of `numel` entries: scales, then two entries per byte."""
    return _blocks(numel) * (_SCALE_BYTES + BLOCK // 2)


def encode(x: Tensor) -> Tensor:
    """The code of a finite fp32 vector, as uint8 on its device."""
    code = torch.empty(code_bytes(x.numel()), dtype=torch.uint8, device=x.device)
    for piece, scales, packed in _pieces(x, code):
        filled = torch.nn.functional.pad(piece, (0, -piece.numel() % BLOCK))
        x_BS = filled.view(-1, BLOCK)
        # Three times as fast as a maximum norm, which is not vectorised along rows.
        scale_B1 = x_BS.abs().amax(dim=1, keepdim=True).to(torch.bfloat16)
        # An empty block must not be divided by zero.
        divisor_B1 = scale_B1.float().clamp_(min=torch.finfo(torch.float32).tiny)
        half_BS = (x_BS / divisor_B1).mul_(_TOP * _LEAST_FP16).half().view(torch.int16)
        size_BS = half_BS & 0x7FFF
        # Half a mantissa carries over exactly where the next power of two is nearer.
        size_BS.add_(_HALF_MANTISSA).bitwise_right_shift_(_MANTISSA_BITS).clamp_(max=_LEVELS)
        size_BS |= half_BS.bitwise_right_shift_(12) & 8
        pair_BS = size_BS[:, : BLOCK // 2] | (size_BS[:, BLOCK // 2 :] << 4)
        scales.copy_(scale_B1.flatten().view(torch.uint8))
        packed.copy_(pair_BS.flatten())
    return code


def add_decoded(total: Tensor, code: Tensor, weight: float) -> None:
    """Add to the fp32 vector `total` a code of as many entries, times `weight`."""
    for piece, scales, packed in _pieces(total, code):
        scale_B1 = scales.clone().view(torch.bfloat16).float().unsqueeze(1)
        pair_BS = packed.to(torch.int16).view(-1, BLOCK // 2)
        code_BS = torch.cat([pair_BS & 15, pair_BS.bitwise_right_shift_(4)], dim=1)
        half_BS = (code_BS & _LEVELS).bitwise_left_shift_(_MANTISSA_BITS)
        half_BS |= code_BS.bitwise_and_(8).bitwise_left_shift_(12)
        factor = weight / (_TOP * _LEAST_FP16)
        value = half_BS.view(torch.float16).float().mul_(scale_B1.mul_(factor)).flatten()
        piece.add_(value[: piece.numel()])


def _blocks(numel: int) -> int:
    return -(-numel // BLOCK)


def _pieces(x: Tensor, code: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Parts of a vector, with the bytes of their scales and those of their entries."""
    first = _blocks(x.numel()) * _SCALE_BYTES
    for start in range(0, x.numel(), _CHUNK):
        piece = x[start : start + _CHUNK]
        blocks, before = _blocks(piece.numel()), start // BLOCK
        scales = code[before * _SCALE_BYTES : (before + blocks) * _SCALE_BYTES]
        begin = first + before * (BLOCK // 2)
        yield piece, scales, code[begin : begin + blocks * (BLOCK // 2)]
