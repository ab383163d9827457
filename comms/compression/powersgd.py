"""PowerSGD (Vogels et al., NeurIPS 2019, arXiv 1905.13727): linear, so sums need no gather.

Any number of flat gradients may be under way: everything is kept per key. Guarantees, each
asserted in tests/comms/compression/test_powersgd.py:
- the result is P Q^T with P orthonormal and Q the sum of all ranks' projections on it;
- what is sent and kept adds up to what came in, up to the rounding of the reduction;
- matrices of a rank no larger than the configured one arrive whole;
- factors of 8 or 4 bits lose nothing to the sum: what rounding takes of Q is kept, too.
"""

from collections.abc import Generator
from typing import get_args

import torch
import torch.distributed as dist
from torch import Tensor

from comms.compression import factors
from comms.compression.config import BlockFormat, CompressionConfig
from comms.compression.geometry import Geometry
from comms.compression.method import Phases, Step
from comms.compression.state import Slot
from comms.compression.wire import decode_values, encode_values, poisoned, value_bytes
from comms.volume import all_reduce_bytes


class PowerSGD:
    """Sums the left factors, then the right ones.

    They are all-reduced as fp32 where `values` says so, and as bf16 for fp16: sums over ranks have
    no common scale for that. What rounding takes from this rank's factors is kept, what it takes
    from their sums is not. Factors of 8 or 4 bits are gathered and summed in fp32: fewer bytes
    between few ranks, but they grow with the ranks.
    """

    phases = 2

    def __init__(self, config: CompressionConfig) -> None:
        self._rank = config.rank
        self._form = config.values
        self._gathers = config.values in get_args(BlockFormat)
        self._dtype = torch.float32 if config.values == "fp32" else torch.bfloat16

    def sent_bytes(self, geometry: Geometry, ranks: int, ratio: float) -> dict[str, int]:
        left = factors.left_numel(geometry.matrices, self._rank)
        right = factors.right_numel(geometry.matrices, self._rank)
        if self._gathers:
            sent = value_bytes(left, self._form) + value_bytes(right, self._form)
            return {"all_gather": sent * (ranks - 1)}
        size = self._dtype.itemsize
        return {
            "all_reduce": all_reduce_bytes(size * left, ranks)
            + all_reduce_bytes(size * right, ranks)
        }

    def exchange(self, slot: Slot, flat: Tensor, step: Step) -> Phases:
        matrices = step.geometry.matrices
        if step.finite and "residual" in slot.values:
            flat += slot.values["residual"]
        left = factors.multiply(flat, self._right(slot, flat, step), matrices, self._rank)
        left = yield from self._summed(self._wire(left, finite=step.finite)[0], left, step)
        # The same sum on all ranks: they all stop here, or none does.
        finite = bool(left.isfinite().all())
        if finite:
            factors.orthonormalise_all(left, matrices, self._rank)
            right = factors.multiply_transposed(flat, left, matrices, self._rank)
        else:
            right = flat.new_zeros(factors.right_numel(matrices, self._rank))
        wire, seen = self._wire(right, finite=True)
        if finite:
            unsent = slot.buffer("residual", flat)
            factors.subtract_product(flat, left, seen, matrices, self._rank, out=unsent)
            _clear(unsent, step.geometry)
            slot.replace("residual", unsent)
        right = yield from self._summed(wire, right, step)
        if not finite:
            flat.fill_(torch.nan)
            return False
        slot.keep("factors", right)
        factors.product(left, right, matrices, self._rank, out=flat)
        return bool(right.isfinite().all())

    def _wire(self, factor: Tensor, *, finite: bool) -> tuple[Tensor, Tensor]:
        """What this rank sends of a factor, and what receivers see in it."""
        if not self._gathers:
            wire = factor.to(self._dtype)
            # A copy: fp32 factors are summed in place.
            return wire, wire.to(torch.float32, copy=True)
        code, seen = encode_values(factor, self._form)
        return (code if finite else poisoned(code)), seen

    def _summed(self, wire: Tensor, like: Tensor, step: Step) -> Generator[dist.Work, None, Tensor]:
        """The sum of all ranks' factors, fp32, bitwise the same everywhere."""
        if not self._gathers:
            yield from step.sum(wire)
            return wire.float()
        total = torch.zeros_like(like)
        for row in (yield from step.gather(wire)):
            total += decode_values(row, self._form, total.numel())
        return total

    def _right(self, slot: Slot, flat: Tensor, step: Step) -> Tensor:
        """Where the last step ended, or random: a copy, which the caller may use up."""
        kept = slot.values.get("factors")
        size = factors.right_numel(step.geometry.matrices, self._rank)
        if kept is None or kept.numel() != size:
            return factors.first_right(step, flat, self._rank)
        return kept.clone()


def _clear(unsent: Tensor, geometry: Geometry) -> None:
    """Nothing is kept of what travels dense."""
    for start, end in geometry.dense:
        unsent[start:end] = 0
