"""What the watchdog is told. Plain data, filled by the caller; times are seconds.

Monotonic clocks of two hosts have nothing in common, so times of readings are only compared on one
host.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from trainer.boards import RankReading

ProcessState = Literal["running", "sleeping", "stopped", "disk-wait", "zombie", "gone", "unknown"]


@dataclass(frozen=True, kw_only=True)
class RankEvidence:
    """A rank as seen from outside."""

    rank: int
    host: str
    process: ProcessState = "unknown"
    silent_s: float = 0.0
    """Since the observer last had news of this rank, by the observer's clock."""

    reading: RankReading | None = None
    """The newest there is; None before the first."""

    read_s: float = 0.0
    """When the reading was taken, by the monotonic clock of the rank's host."""

    starved_s: float = 0.0
    """For how long it wanted a core and got none, of the time since it was first looked at."""

    role: str = ""
    """Ranks of the same role do the same work in a step, such as those of one pipeline stage."""

    @property
    def heartbeat_age_s(self) -> float:
        """How long the heartbeat thread had not run when the reading was taken."""
        return max(0.0, self.read_s - self.reading.heartbeat_s) if self.reading else 0.0


@dataclass(frozen=True, kw_only=True)
class HostMemory:
    """Memory of one host."""

    used_bytes: int
    total_bytes: int
    ranks_bytes: Mapping[int, int] = field(default_factory=dict)
    """By rank, what its own process holds."""


@dataclass(frozen=True, kw_only=True)
class LossPoint:
    """What one step's loss came to."""

    step: int
    loss: float
    grad_norm: float
    bad_ranks: tuple[int, ...] = ()
    """Ranks whose own loss was not finite."""


@dataclass(frozen=True, kw_only=True)
class ClusterEvidence:
    """All that is known at one moment."""

    now_s: float
    """The observer's monotonic clock."""

    ranks: Mapping[int, RankEvidence]
    losses: tuple[LossPoint, ...] = ()
    """Steps since the last observation, oldest first."""

    memory: Mapping[str, HostMemory] = field(default_factory=dict)
    """By host."""

    delays_s: Mapping[tuple[int, int], float] = field(default_factory=dict)
    """Measured delay from one rank to another, where links were measured pair by pair."""
