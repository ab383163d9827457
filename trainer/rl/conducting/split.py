"""How the places of a run are split between training and sampling, and which splits it can have."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Split:
    """How many do what."""

    trainers: int
    workers: int

    def __str__(self) -> str:
        return f"{self.trainers} training and {self.workers} sampling"


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where processes of a run may be, and which numbers its layout allows."""

    now: Split
    trainer_sizes: Sequence[int]
    """Numbers of ranks that the layout allows, up to all places."""

    most_trainers: int
    """For which there are places, where workers give up theirs."""

    most_workers: int
    """For which there are places, where ranks give up theirs."""

    spare: int = 0
    """Places for workers beyond those of `now`, which may not be there when they are wanted."""

    fixed: str = ""
    """What keeps places from changing hands; empty where nothing does."""

    @property
    def total(self) -> int:
        """Places that are there."""
        return self.now.trainers + self.now.workers
