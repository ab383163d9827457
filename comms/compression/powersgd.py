"""PowerSGD (Vogels et al., NeurIPS 2019, arXiv 1905.13727): linear, so it needs no gather.

Any number of flat gradients may be under way: everything is kept per key. Guarantees, each
asserted in tests/comms/compression/test_powersgd.py:
- the result is P Q^T with P orthonormal and Q the sum of all ranks' projections on it;
- what is sent and kept adds up to what came in, up to the rounding of the reduction;
- matrices of a rank no larger than the configured one arrive whole.
"""

import torch
from torch import Tensor

from comms.compression import factors
from comms.compression.config import CompressionConfig
from comms.compression.geometry import Geometry
from comms.compression.method import Phases, Step
from comms.compression.state import Slot
from comms.volume import all_reduce_bytes


class PowerSGD:
    """All-reduces the left factors, then the right ones, as fp32 where `values` says so, else as
    bf16: sums over ranks have no common scale for fp16. What rounding takes from this rank's
    factors is kept, what it takes from their sums is not."""

    phases = 2

    def __init__(self, config: CompressionConfig) -> None:
        self._rank = config.rank
        self._dtype = torch.float32 if config.values == "fp32" else torch.bfloat16

    def sent_bytes(self, geometry: Geometry, ranks: int, ratio: float) -> dict[str, int]:
        left = self._dtype.itemsize * factors.left_numel(geometry.matrices, self._rank)
        right = self._dtype.itemsize * factors.right_numel(geometry.matrices, self._rank)
        return {"all_reduce": all_reduce_bytes(left, ranks) + all_reduce_bytes(right, ranks)}

    def exchange(self, slot: Slot, flat: Tensor, step: Step) -> Phases:
        matrices = step.geometry.matrices
        if step.finite and "residual" in slot.values:
            flat += slot.values["residual"]
        left = factors.multiply(flat, self._right(slot, flat, step), matrices, self._rank)
        wire = left.to(self._dtype)
        yield from step.sum(wire)
        left = wire.float()
        # The same sum on all ranks: they all stop here, or none does.
        finite = bool(left.isfinite().all())
        if finite:
            factors.orthonormalise_all(left, matrices, self._rank)
            wire = factors.multiply_transposed(flat, left, matrices, self._rank).to(self._dtype)
            right = wire.float()
            unsent = slot.buffer("residual", flat)
            factors.subtract_product(flat, left, right, matrices, self._rank, out=unsent)
            _clear(unsent, step.geometry)
            slot.replace("residual", unsent)
        else:
            size = factors.right_numel(matrices, self._rank)
            wire = torch.zeros(size, dtype=self._dtype, device=flat.device)
        yield from step.sum(wire)
        right = wire.float()
        if not finite:
            flat.fill_(torch.nan)
            return False
        slot.keep("factors", right)
        factors.product(left, right, matrices, self._rank, out=flat)
        return bool(right.isfinite().all())

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
