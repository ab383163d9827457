"""Numbers of 8 or 4 bits in blocks that share one bf16 scale.

Guarantees, each asserted in tests/comms/compression/test_blocks.py:
- what `encode` leaves behind and what `decode` gives add up to what came in;
- with randomness, the mean over draws is the value itself, within 1/100 of a step (stochastic
  rounding, with 7 or 8 random bits per entry);
- the error of an entry is at most one step of its format at the block's largest entry: 1/127 of
  it for int8, 1/14 for fp8 (E4M3), 1/3 for fp4 (E2M1), and half of that without randomness, up to
  the rounding of the scale;
- a poisoned code is not finite, and every other one is.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from comms.compression.config import BlockFormat
from comms.compression.raw import as_bytes, from_bytes

# B blocks of S entries.

_SCALE = torch.bfloat16
_CHUNK = 1 << 18
"""Entries worked on at a time: few enough for a core's cache, so many that calls cost nothing."""

_WHOLE = torch.int16
_HALF = torch.float16


@dataclass(frozen=True)
class _Format:
    """Codes are the upper bits of 16-bit numbers, made so that dropping the lower `shift` bits
    rounds. Those numbers are integers for int8, and fp16 for fp8 and fp4, whose exponents differ
    from fp16's by a factor only: even the smallest ones, below the least exponent, match."""

    bits: int
    block: int
    top: float
    """Largest number."""

    shift: int
    factor: float
    """From a number to the 16-bit one."""

    dtype: torch.dtype


_FORMATS: dict[BlockFormat, _Format] = {
    "int8": _Format(8, 256, 127.0, 8, 2.0**8, _WHOLE),
    "fp8": _Format(8, 256, 448.0, 7, 2.0**-8, _HALF),
    "fp4": _Format(4, 32, 6.0, 9, 2.0**-14, _HALF),
}


class BlockCodec:
    """Vectors as blocks of one format; the last block may be filled up with zeros."""

    def __init__(self, name: BlockFormat) -> None:
        self._format = _FORMATS[name]
        self._pairs = _pair_table(_FORMATS["fp4"])

    @property
    def block(self) -> int:
        """Entries that share a scale."""
        return self._format.block

    def code_bytes(self, numel: int) -> int:
        """Bytes of the blocks that hold `numel` entries."""
        blocks = -(-numel // self.block)
        return blocks * (_SCALE.itemsize + self.block * self._format.bits // 8)

    def encode(self, x: Tensor, numel: int, randomness: torch.Generator | None = None) -> Tensor:
        """The code of fp32 `x`, as if filled up with zeros to `numel`; `x` is left with what the
        code does not carry. Without randomness, entries are rounded to the nearest."""
        code = torch.zeros(self.code_bytes(numel), dtype=torch.uint8, device=x.device)
        scales = -(-numel // self.block) * _SCALE.itemsize
        for start, end in _chunks(x.numel(), self.block):
            whole = end - (end - start) % self.block
            self._encode_blocks(x[start:whole], code, scales, start, randomness)
            if whole < end:
                filled = x.new_zeros(self.block)
                filled[: end - whole] = x[whole:end]
                self._encode_blocks(filled, code, scales, whole, randomness)
                x[whole:end] = filled[: end - whole]
        return code

    def decode(self, code: Tensor, out: Tensor, numel: int) -> None:
        """Add to fp32 `out` the first entries of a code of `numel`."""
        scales = -(-numel // self.block) * _SCALE.itemsize
        for start, end in _chunks(out.numel(), self.block):
            whole = end - (end - start) % self.block
            self._add_blocks(out[start:whole], code, scales, start, 1.0)
            if whole < end:
                filled = out.new_zeros(self.block)
                self._add_blocks(filled, code, scales, whole, 1.0)
                out[whole:end] += filled[: end - whole]

    def poisoned(self, numel: int, device: torch.device) -> Tensor:
        """A code that is not finite."""
        code = torch.zeros(self.code_bytes(numel), dtype=torch.uint8, device=device)
        end = -(-numel // self.block) * _SCALE.itemsize
        code[:end] = 0xFF
        return code

    def finite(self, code: Tensor, numel: int) -> bool:
        """Whether all scales are."""
        end = -(-numel // self.block) * _SCALE.itemsize
        return bool(from_bytes(code[:end], _SCALE).isfinite().all())

    def _encode_blocks(
        self,
        x: Tensor,
        code: Tensor,
        scales: int,
        start: int,
        randomness: torch.Generator | None,
    ) -> None:
        """Encode whole blocks to their place, and subtract what was encoded from `x`."""
        if not x.numel():
            return
        x_BS = x.view(-1, self.block)
        # Three times as fast as aminmax, which is not vectorised along rows.
        top_B1 = x_BS.abs().amax(dim=1, keepdim=True)
        # An empty block must not be divided by zero.
        scale_B1 = (top_B1 / self._format.top).to(_SCALE).clamp_(min=torch.finfo(_SCALE).tiny)
        scaled_BS = x_BS * (self._format.factor / scale_B1.float())
        packed = self._packed(scaled_BS, randomness)
        place = start // self.block * _SCALE.itemsize
        code[place : place + scale_B1.numel() * _SCALE.itemsize] = as_bytes(scale_B1).flatten()
        place = scales + start * self._format.bits // 8
        code[place : place + packed.numel()] = packed
        self._add_blocks(x, code, scales, start, -1.0)

    def _packed(self, scaled_BS: Tensor, randomness: torch.Generator | None) -> Tensor:
        form = self._format
        if form.dtype is _WHOLE:
            limit = form.top * form.factor
            sixteen = scaled_BS.clamp_(-limit, limit).to(_WHOLE)
            sixteen += _below_step(sixteen, form.shift, randomness)
            return as_bytes((sixteen >> form.shift).clamp_(max=127).to(torch.int8)).flatten()
        sixteen = scaled_BS.to(_HALF).view(_WHOLE)
        size = sixteen & 0x7FFF
        size += _below_step(size, form.shift, randomness)
        size >>= form.shift
        size.clamp_(max=_largest_code(form))
        sixteen >>= 16 - form.bits
        size |= sixteen & (1 << (form.bits - 1))
        packed = size.to(torch.uint8).flatten()
        if form.bits == 4:
            # A byte holds two neighbours, the first in its lower half.
            pairs = packed.view(_WHOLE)
            packed = (pairs | (pairs >> 4)).to(torch.uint8)
        return packed

    def _add_blocks(self, out: Tensor, code: Tensor, scales: int, start: int, sign: float) -> None:
        """Add decoded blocks to `out`, times `sign`."""
        if not out.numel():
            return
        form = self._format
        place = start // form.block * _SCALE.itemsize
        end = place + out.numel() // form.block * _SCALE.itemsize
        scale_B1 = from_bytes(code[place:end], _SCALE).float().unsqueeze(1)
        place = scales + start * form.bits // 8
        packed = code[place : place + out.numel() * form.bits // 8]
        if form.dtype is _WHOLE:
            q = packed.view(torch.int8).float()
        elif form.bits == 4:
            table = self._pairs.to(packed.device)
            q = table.index_select(0, packed.int()).view(torch.float32)
        else:
            q = _from_half(packed, form).float()
            sign /= form.factor
        out.view(-1, form.block).addcmul_(q.view(-1, form.block), scale_B1, value=sign)


def _pair_table(form: _Format) -> Tensor:
    """The two numbers of 4 bits in every byte, [256]: fetched as one of 64 bits, at half the cost
    of taking codes apart."""
    code = torch.arange(256, dtype=_WHOLE)
    both = torch.stack([code & 15, code >> 4], dim=1)
    return (_from_half(both, form).float() / form.factor).view(torch.int64).flatten()


def _from_half(codes: Tensor, form: _Format) -> Tensor:
    """Codes as the fp16 numbers whose upper bits they are."""
    sixteen = codes.to(_WHOLE, copy=True)
    sign = sixteen & (1 << (form.bits - 1))
    sixteen ^= sign
    sixteen <<= form.shift
    sixteen |= sign << (16 - form.bits)
    return sixteen.view(_HALF)


def _largest_code(form: _Format) -> int:
    """The code of the largest number."""
    top = torch.tensor(form.top * form.factor, dtype=_HALF)
    return int(top.view(_WHOLE)) >> form.shift


def _below_step(like: Tensor, shift: int, randomness: torch.Generator | None) -> Tensor | int:
    """What to add before the lower `shift` bits are dropped: random, or half a step."""
    if randomness is None:
        return 1 << (shift - 1)
    # One draw of 64 bits serves eight entries.
    draws = torch.empty(-(-like.numel() // 8), dtype=torch.int64, device=like.device)
    draws.random_(-(2**63), None, generator=randomness)
    bits = draws.view(torch.uint8)[: like.numel()].to(_WHOLE).view_as(like)
    return (
        bits.bitwise_right_shift_(8 - shift) if shift < 8 else bits.bitwise_left_shift_(shift - 8)
    )


def _chunks(numel: int, block: int) -> Iterator[tuple[int, int]]:
    size = _CHUNK // block * block
    for start in range(0, numel, size):
        yield start, min(start + size, numel)
