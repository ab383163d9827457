"""What a compression method is: how it turns one rank's flat gradient into the sum over ranks."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from comms.compression.geometry import Geometry
from comms.compression.raw import as_bytes, from_bytes
from comms.compression.ring import Hops, gathered_rows, summed
from comms.compression.state import Slot
from comms.compression.wire import SCALE_BYTES
from comms.telemetry.recorder import Recorder

Phases: TypeAlias = "Generator[dist.Work, None, bool]"
"""Yields each collective under way, to be resumed once it has completed. Returns whether what came
in was finite on every rank; all ranks return the same."""


class Scratch:
    """Memory for intermediate vectors, one per name, as large as the largest asked for. What is
    in it is gone once a method yields."""

    def __init__(self) -> None:
        self._memory: dict[str, Tensor] = {}

    def get(self, name: str, like: Tensor) -> Tensor:
        """An uninitialised vector shaped as `like`."""
        memory = self._memory.get(name)
        if memory is None or memory.numel() < like.numel() or memory.device != like.device:
            memory = self._memory[name] = torch.empty_like(like)
        return memory[: like.numel()]


@dataclass(frozen=True)
class Step:
    """What one exchange of one flat gradient knows."""

    geometry: Geometry
    group: dist.ProcessGroup
    ratio: float
    seed: int
    """The same on all ranks, another for every key and step."""

    finite: bool
    """Whether this rank's gradient is. If not, the method sends messages of the same size that
    say so, and writes no state."""

    scratch: Scratch
    ring: tuple[int, ...] = ()
    """Places of the group in the order in which messages pass them; empty: as collectives do."""

    def gather(self, code: Tensor) -> Generator[dist.Work, None, Tensor]:
        """All ranks' codes, of one size, as rows by place."""
        return gathered_rows(code, self.group, self.ring)

    def sum(self, values: Tensor) -> Hops:
        """Sum a flat tensor over the ranks, in place."""
        return summed(values, self.group, self.ring)


class Method(Protocol):
    """One way to exchange. All ranks of the group call `exchange` in the same order."""

    phases: int
    """Collectives that follow on each other; one lets exchanges overlap."""

    def sent_bytes(self, geometry: Geometry, ranks: int, ratio: float) -> dict[str, int]:
        """Bytes that one rank sends, per operation."""

    def exchange(self, slot: Slot, flat: Tensor, step: Step) -> Phases:
        """Replace `flat` by the sum over ranks, through `slot`, in which a step has begun."""


def recorded(phases: Phases, recorder: Recorder, tokens: Sequence[int]) -> Phases:
    """The same exchange, which says when it starts and, unless it fails, when it is over."""
    recorder.start(*tokens)
    finite = yield from phases
    recorder.end(*tokens)
    return finite


def poisoned_rows(rows: Tensor) -> bool:
    """Whether a rank sent a message whose scale is not finite."""
    scales = from_bytes(as_bytes(rows[:, :SCALE_BYTES]).flatten(), torch.float32)
    return not bool(scales.isfinite().all())


def generator(seed: int, device: torch.device) -> torch.Generator:
    """Randomness of one exchange."""
    return torch.Generator(device=device).manual_seed(seed)
