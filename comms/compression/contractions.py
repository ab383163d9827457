"""Contractive compressors: what is left of a vector is shorter, E|C(x) - x|^2 <= (1 - d)|x|^2.

Each is asserted to contract in tests/comms/compression/test_contractions.py, and to decode to what
its sender subtracts from its own error. Codes have a size that follows from sizes alone, and begin
with a scale that is NaN where the sender's gradient was not finite.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from comms.compression.blocks import BlockCodec
from comms.compression.config import CompressionConfig
from comms.compression.factors import decode_factors, factor_bytes, local_factors, product
from comms.compression.geometry import Geometry
from comms.compression.method import Step, generator
from comms.compression.raw import as_bytes
from comms.compression.selection import largest, spread, target_count
from comms.compression.state import Slot
from comms.compression.wire import (
    SCALE_BYTES,
    decode_sparse,
    decode_values,
    encode_sparse,
    encode_values,
    sparse_bytes,
    value_bytes,
)


@dataclass(frozen=True)
class Update:
    """A compressed vector: some entries, or all where `indices` is None."""

    values: Tensor
    indices: Tensor | None = None

    def add_to(self, target: Tensor, *, alpha: float = 1.0) -> None:
        """target += alpha * this, in place."""
        if self.indices is None:
            target.add_(self.values, alpha=alpha)
        else:
            target.index_add_(0, self.indices, self.values, alpha=alpha)

    def add_through(self, slot: Slot, name: str) -> None:
        """Add this to a value of a slot."""
        before = slot.values[name]
        if self.indices is not None:
            slot.write(name, self.indices, before[self.indices] + self.values)
        else:
            slot.replace(name, torch.add(before, self.values, out=slot.buffer(name, before)))


class Contraction(Protocol):
    """One compressor."""

    def code_bytes(self, geometry: Geometry, ratio: float) -> int:
        """Size of every code."""

    def encode(self, x: Tensor, slot: Slot, step: Step) -> tuple[Tensor, Update]:
        """The code of fp32 `x`, and what receivers will make of it."""

    def decode(self, code: Tensor, step: Step) -> Update:
        """What another rank's code stands for."""


class TopK:
    """The largest entries: d = ratio."""

    def __init__(self, config: CompressionConfig) -> None:
        self._form = config.values
        self._sample_ratio = config.sample_ratio

    def code_bytes(self, geometry: Geometry, ratio: float) -> int:
        count = target_count(geometry.compressed_numel, ratio)
        return sparse_bytes(geometry.numel, count, self._form)

    def encode(self, x: Tensor, slot: Slot, step: Step) -> tuple[Tensor, Update]:
        count = target_count(step.geometry.compressed_numel, step.ratio)
        magnitudes = torch.abs(x, out=step.scratch.get("magnitudes", x))
        indices = largest(magnitudes, count, sample_ratio=self._sample_ratio, offset=step.seed)
        code, seen = encode_sparse(x[indices], indices, x.numel(), self._form)
        return code, Update(seen, indices)

    def decode(self, code: Tensor, step: Step) -> Update:
        count = target_count(step.geometry.compressed_numel, step.ratio)
        indices, values = decode_sparse(code, step.geometry.numel, count, self._form)
        return Update(values, indices)


class RandK:
    """Random entries, the same on all ranks, so that no index travels: d = ratio."""

    def __init__(self, config: CompressionConfig) -> None:
        self._form = config.values

    def code_bytes(self, geometry: Geometry, ratio: float) -> int:
        return value_bytes(target_count(geometry.numel, ratio), self._form)

    def encode(self, x: Tensor, slot: Slot, step: Step) -> tuple[Tensor, Update]:
        indices = self._indices(step, x.device)
        code, seen = encode_values(x[indices], self._form)
        return code, Update(seen, indices)

    def decode(self, code: Tensor, step: Step) -> Update:
        indices = self._indices(step, code.device)
        return Update(decode_values(code, self._form, indices.numel()), indices)

    def _indices(self, step: Step, device: torch.device) -> Tensor:
        numel = step.geometry.numel
        return spread(numel, target_count(numel, step.ratio), generator(step.seed, device))


class Quantised:
    """Numbers of few bits, rounded to the nearest: a stochastic rounding would not contract."""

    def __init__(self, config: CompressionConfig) -> None:
        self._codec = BlockCodec(config.block_format)

    def code_bytes(self, geometry: Geometry, ratio: float) -> int:
        return SCALE_BYTES + self._codec.code_bytes(geometry.numel)

    def encode(self, x: Tensor, slot: Slot, step: Step) -> tuple[Tensor, Update]:
        left = step.scratch.get("left_over", x).copy_(x)
        code = self._codec.encode(left, x.numel())
        # A scale of its own keeps the beginning of all codes alike.
        mark = as_bytes(torch.ones(1, device=x.device))
        return torch.cat([mark, code]), Update(x - left)

    def decode(self, code: Tensor, step: Step) -> Update:
        seen = torch.zeros(step.geometry.numel, device=code.device)
        self._codec.decode(code[SCALE_BYTES:], seen, seen.numel())
        return Update(seen)


class LowRank:
    """One step of power iteration per matrix, from where the last one ended."""

    def __init__(self, config: CompressionConfig) -> None:
        self._form = config.values
        self._rank = config.rank

    def code_bytes(self, geometry: Geometry, ratio: float) -> int:
        return factor_bytes(geometry.matrices, self._rank, self._form)

    def encode(self, x: Tensor, slot: Slot, step: Step) -> tuple[Tensor, Update]:
        left, right = local_factors(x, slot, step, self._rank)
        left_code, left = encode_values(left, self._form)
        right_code, right = encode_values(right, self._form)
        seen = torch.zeros_like(x)
        product(left, right, step.geometry.matrices, self._rank, out=seen)
        return torch.cat([left_code, right_code]), Update(seen)

    def decode(self, code: Tensor, step: Step) -> Update:
        matrices = step.geometry.matrices
        left, right = decode_factors(code, matrices, self._rank, self._form)
        seen = torch.zeros(step.geometry.numel, device=code.device)
        product(left, right, matrices, self._rank, out=seen)
        return Update(seen)


def contraction_of(config: CompressionConfig) -> Contraction:
    """The compressor that a configuration names."""
    match config.contraction:
        case "top_k":
            return TopK(config)
        case "rand_k":
            return RandK(config)
        case "quantized":
            return Quantised(config)
        case "low_rank":
            return LowRank(config)
