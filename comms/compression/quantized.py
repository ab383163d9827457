"""All-reduce of numbers with few bits: all-to-all, a sum in fp32, all-gather.

Each rank owns one part of the vector. All send it their part, quantised; it sums them, quantises
the sum and gives it to all. Both roundings are stochastic and both errors are fed back: the
sender's into its next gradient, the owner's into its next sum.

Guarantees, each asserted in tests/comms/compression/test_quantized.py:
- all ranks get the same sum, bitwise;
- what is sent and kept, on both sides, adds up to what came in;
- sums are made in fp32, so the error does not grow with the number of ranks.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from comms.compression.blocks import BlockCodec
from comms.compression.config import CompressionConfig
from comms.compression.geometry import Geometry
from comms.compression.method import Phases, Step, generator
from comms.compression.ring import started
from comms.compression.state import Slot

# P ranks, C entries of one part, B bytes of its code.


class QuantizedAllReduce:
    """int8, fp8 or fp4 both ways."""

    phases = 2

    def __init__(self, config: CompressionConfig) -> None:
        self._codec = BlockCodec(config.block_format)

    def sent_bytes(self, geometry: Geometry, ranks: int, ratio: float) -> dict[str, int]:
        part_bytes = self._codec.code_bytes(self._part(geometry.numel, ranks))
        return {"all_to_all": part_bytes * (ranks - 1), "all_gather": part_bytes * (ranks - 1)}

    def exchange(self, slot: Slot, flat: Tensor, step: Step) -> Phases:
        part = self._part(flat.numel(), step.group.size())
        randomness = generator(step.seed + step.group.rank(), flat.device)
        send_PB = self._encode_own(slot, flat, part, randomness, step)
        received_PB = torch.empty_like(send_PB)
        yield started(dist.all_to_all_single(received_PB, send_PB, group=step.group, async_op=True))
        rows_PB = yield from step.gather(self._encode_sum(slot, received_PB, part, randomness))
        if not all(self._codec.finite(row, part) for row in rows_PB):
            flat.fill_(torch.nan)
            return False
        flat.zero_()
        for target, row in zip(_parts(flat, part), rows_PB, strict=False):
            self._codec.decode(row, target, part)
        return True

    def _part(self, numel: int, ranks: int) -> int:
        """Entries of one rank's part: whole blocks."""
        return -(-numel // (ranks * self._codec.block)) * self._codec.block

    def _encode_own(
        self, slot: Slot, flat: Tensor, part: int, randomness: torch.Generator, step: Step
    ) -> Tensor:
        """This rank's code of every part."""
        empty = torch.zeros(self._codec.code_bytes(part), dtype=torch.uint8, device=flat.device)
        if not step.finite:
            return self._codec.poisoned(part, flat.device).repeat(step.group.size(), 1)
        before = slot.get("residual", flat)
        unsent = torch.add(flat, before, out=slot.buffer("residual", flat))
        slot.replace("residual", unsent)
        codes = [self._codec.encode(x, part, randomness) for x in _parts(unsent, part)]
        return torch.stack(codes + [empty] * (step.group.size() - len(codes)))

    def _encode_sum(
        self, slot: Slot, received_PB: Tensor, part: int, randomness: torch.Generator
    ) -> Tensor:
        """The code of the sum of this rank's part."""
        if not all(self._codec.finite(code, part) for code in received_PB):
            return self._codec.poisoned(part, received_PB.device)
        total_C = torch.zeros(part, device=received_PB.device)
        for code in received_PB:
            self._codec.decode(code, total_C, part)
        total_C += slot.get("sum_residual", total_C)
        code = self._codec.encode(total_C, part, randomness)
        slot.keep("sum_residual", total_C)
        return code


def _parts(flat: Tensor, part: int) -> tuple[Tensor, ...]:
    """Views of each rank's part; the last may be shorter, and some missing."""
    return flat.split(part)
