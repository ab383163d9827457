"""Deep Gradient Compression (Lin et al., ICLR 2018, arXiv 1712.01887).

Guarantees, each asserted in tests/comms/compression/test_dgc.py:
- what all ranks sent and kept, together, is the sum of all velocities: nothing is lost, not even
  by rounding on the wire;
- with everything sent and no masking, steps equal those of SGD with momentum;
- the momentum of an entry that was sent starts again from zero, if masked.
"""

import torch
from torch import Tensor

from comms.compression.config import CompressionConfig
from comms.compression.geometry import Geometry
from comms.compression.method import Phases, Step, poisoned_rows
from comms.compression.momentum import Momentum
from comms.compression.selection import largest, target_count
from comms.compression.state import Slot
from comms.compression.wire import decode_sparse, encode_sparse, poisoned, sparse_bytes


class DeepGradientCompression:
    """Each rank sends the largest entries of its accumulated velocity, and keeps the others."""

    phases = 1

    def __init__(self, config: CompressionConfig) -> None:
        self._config = config
        self._momentum = Momentum(config.momentum, config.nesterov)

    def sent_bytes(self, geometry: Geometry, ranks: int, ratio: float) -> dict[str, int]:
        count = target_count(geometry.compressed_numel, ratio)
        message_bytes = sparse_bytes(geometry.numel, count, self._config.values)
        return {"all_gather": message_bytes * (ranks - 1)}

    def exchange(self, slot: Slot, flat: Tensor, step: Step) -> Phases:
        numel, form = flat.numel(), self._config.values
        count = target_count(step.geometry.compressed_numel, step.ratio)
        if step.finite:
            code = self._accumulate_and_take(slot, flat, count, step)
        else:
            size = sparse_bytes(numel, count, form)
            code = poisoned(torch.zeros(size, dtype=torch.uint8, device=flat.device))
        rows = yield from step.gather(code)
        if poisoned_rows(rows):
            flat.fill_(torch.nan)
            return False
        flat.zero_()
        for row in rows:
            indices, values = decode_sparse(row, numel, count, form)
            flat.index_add_(0, indices, values)
        return True

    def _accumulate_and_take(self, slot: Slot, flat: Tensor, count: int, step: Step) -> Tensor:
        before = slot.get("residual", flat)
        velocity = self._momentum.apply(slot, flat)
        unsent = torch.add(before, velocity, out=slot.buffer("residual", flat))
        slot.replace("residual", unsent)
        magnitudes = torch.abs(unsent, out=step.scratch.get("magnitudes", flat))
        indices = largest(
            magnitudes, count, sample_ratio=self._config.sample_ratio, offset=step.seed
        )
        values = unsent[indices]
        code, seen = encode_sparse(values, indices, flat.numel(), self._config.values)
        slot.write("residual", indices, values - seen)
        if self._config.mask_momentum and self._config.momentum > 0:
            slot.write("velocity", indices, torch.zeros_like(values))
        return code
