"""Exchange without compression, or cast to 16 bits; also how accumulated errors are flushed."""

import torch
from torch import Tensor

from comms.compression.geometry import Geometry
from comms.compression.method import Phases, Step
from comms.compression.momentum import Momentum
from comms.compression.state import Slot
from comms.volume import all_reduce_bytes


class Dense:
    """All-reduce in `dtype`. What earlier compressed steps have left unsent goes with it."""

    phases = 1

    def __init__(self, dtype: torch.dtype, momentum: Momentum) -> None:
        self._dtype = dtype
        self._momentum = momentum

    def sent_bytes(self, geometry: Geometry, ranks: int, ratio: float) -> dict[str, int]:
        payload_bytes = geometry.compressed_numel * self._dtype.itemsize
        return {"all_reduce": all_reduce_bytes(payload_bytes, ranks)}

    def exchange(self, slot: Slot, flat: Tensor, step: Step) -> Phases:
        if step.finite:
            sent = self._momentum.apply(slot, flat)
            if "residual" in slot.values:
                torch.add(sent, slot.values["residual"], out=flat)
                slot.drop("residual")
            elif sent is not flat:
                flat.copy_(sent)
        wire = flat.to(self._dtype)
        yield from step.sum(wire)
        if wire is not flat:
            flat.copy_(wire)
        return bool(flat.sum().isfinite())


def reduce_dense_runs(slot: Slot, flat: Tensor, step: Step, momentum: Momentum) -> Phases:
    """Sum the runs of `flat` that are not compressed, in one piece, and set them to zero; the
    caller resumes this once the rest has been exchanged, and gets the sums then."""
    runs = step.geometry.dense
    packed = torch.cat([flat[start:end] for start, end in runs])
    for start, end in runs:
        flat[start:end] = 0
    yield from step.sum(packed)
    finite = bool(packed.isfinite().all())
    if finite:
        packed = momentum.apply(slot, packed, name="dense_velocity")
    place = 0
    for start, end in runs:
        flat[start:end] = packed[place : place + end - start]
        place += end - start
    return finite
