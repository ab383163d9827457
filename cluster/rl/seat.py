"""Where a worker that samples can be."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Seat:
    """Room for one worker that samples."""

    index: int
    bundle: int
    """Of the placement group."""

    cpus: float
    gpus: float
    memory_bytes: int
    devices: tuple[str, ...] = ()
    """GPUs shared with the rank of that bundle."""

    spare: bool = False
    """Whether there is no such bundle: room is taken from what is free, if anything is."""
