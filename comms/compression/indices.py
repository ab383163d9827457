"""Sorted indices as bits: Elias-Fano coding (Elias 1974, Fano 1971).

`count` indices below `numel` are split into low bits, stored as they are, and high bits, stored as
unary gaps. That takes 2 + log2(numel / count) bits per index, within half a bit of the least
possible, and a length that depends on `numel` and `count` alone: all ranks know it beforehand.

Guarantees, each asserted in tests/comms/compression/test_indices.py:
- decoding gives back the indices, whatever they are;
- the length is `index_bytes(numel, count)`, and never more than 16 bits per index at a share of
  0.0001 or above.
"""

import torch
from torch import Tensor


def index_bytes(numel: int, count: int) -> int:
    """Bytes of `count` indices below `numel`."""
    low_bits = _low_bits(numel, count)
    return _bytes(count * low_bits) + _bytes(_unary_bits(numel, count, low_bits))


def encode_indices(indices: Tensor, numel: int) -> Tensor:
    """Strictly increasing int64 `indices` below `numel` as uint8."""
    count = indices.numel()
    low_bits = _low_bits(numel, count)
    high = indices >> low_bits
    unary = torch.zeros(
        8 * _bytes(_unary_bits(numel, count, low_bits)), dtype=torch.uint8, device=indices.device
    )
    unary[high + torch.arange(count, device=indices.device)] = 1
    if low_bits == 0:
        return _pack(unary)
    # int32 halves the work on the low bits, which are the bulk of it.
    low = (indices & ((1 << low_bits) - 1)).int()
    bits = (low.unsqueeze(1) >> _shifts(low_bits, indices.device)).bitwise_and_(1).byte()
    padded = torch.zeros(8 * _bytes(count * low_bits), dtype=torch.uint8, device=indices.device)
    padded[: count * low_bits] = bits.flatten()
    return torch.cat([_pack(padded), _pack(unary)])


def decode_indices(code: Tensor, numel: int, count: int) -> Tensor:
    """The int64 indices that `encode_indices` was given."""
    low_bits = _low_bits(numel, count)
    low_bytes = _bytes(count * low_bits)
    ones = _unpack(code[low_bytes:]).nonzero().flatten()[:count]
    high = (ones - torch.arange(count, device=code.device)) << low_bits
    if low_bits == 0:
        return high
    bits = _unpack(code[:low_bytes])[: count * low_bits].view(count, low_bits).int()
    return high + (bits << _shifts(low_bits, code.device)).sum(1)


def _low_bits(numel: int, count: int) -> int:
    return max(0, (numel // max(count, 1)).bit_length() - 1)


def _unary_bits(numel: int, count: int, low_bits: int) -> int:
    return count + (numel >> low_bits) + 1


def _bytes(bits: int) -> int:
    return (bits + 7) // 8


def _shifts(count: int, device: torch.device) -> Tensor:
    return torch.arange(count, dtype=torch.int32, device=device)


def _pack(bits: Tensor) -> Tensor:
    """Eight bits, each a uint8 of 0 or 1, in one byte, the first lowest."""
    columns = bits.view(-1, 8)
    packed = columns[:, 0].clone()
    for place in range(1, 8):
        packed |= columns[:, place] << place
    return packed


def _unpack(code: Tensor) -> Tensor:
    shifts = torch.arange(8, dtype=torch.uint8, device=code.device)
    return (code.unsqueeze(1) >> shifts).bitwise_and_(1).flatten()
