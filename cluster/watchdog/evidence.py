"""What the watchdog is told. Plain data, filled by the caller; times are seconds.

Monotonic clocks of two hosts have nothing in common, so times of readings are only compared on one
host, or where `ClusterEvidence.clock_offsets_s` says how far the clocks are apart.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

ProcessState = Literal["running", "sleeping", "stopped", "disk-wait", "zombie", "gone", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Collective:
    """One collective of one rank, by the monotonic clock of its host."""

    communicator: str
    """The same on all ranks that meet in it, and no other's."""

    sequence: int
    """Counts the communicator's collectives from 1; equal on all of its ranks."""

    kind: str
    """Name of the operation, such as `all_reduce`."""

    sent_bytes: int
    phase: str
    enqueued_s: float
    started_s: float | None = None
    ended_s: float | None = None
    awaited_s: float | None = None
    """When the rank began to wait for it; None while it computes beside it."""

    @property
    def duration_s(self) -> float | None:
        """From start (or enqueue, where no start was recorded) to end; None while it is pending."""
        if self.ended_s is None:
            return None
        return self.ended_s - (self.enqueued_s if self.started_s is None else self.started_s)


@dataclass(frozen=True, kw_only=True)
class RankReading:
    """What a rank has written of itself; readable while it is stuck, stopped or dead.

    The fields are those of `comms.telemetry.records.RankReading`, of which this package knows
    nothing, and below them what others measure.
    """

    rank: int
    pid: int
    generation: int
    """Counts the incarnations of the group: it grows at each recovery."""

    heartbeat_s: float
    """When the process's heartbeat thread last ran, by the host's monotonic clock."""

    phase: str
    phase_since_s: float
    step: int
    round: int
    last_sequence: Mapping[str, int]
    """Last collective enqueued, by communicator."""

    members: Mapping[str, tuple[int, ...]]
    """Ranks of each communicator; a communicator without an entry has those ranks that used it."""

    pending: tuple[Collective, ...] = ()
    """Enqueued and not ended, oldest first."""

    recent: tuple[Collective, ...] = ()
    """The last that ended, oldest first."""

    steps: tuple[int, ...] = ()
    """Numbers of the last steps that ended, oldest first."""

    step_ended_s: tuple[float, ...] = ()
    """When each of these steps ended."""

    compute_s: tuple[float, ...] = ()
    """Of each of these steps: from its start to its first blocking collective."""

    waited_s: tuple[float, ...] = ()
    """Of each of these steps: how long the rank waited for collectives."""

    unrecorded: int = 0
    """Collectives that telemetry had no room for."""

    data_s: tuple[float, ...] = ()
    """Of each of these steps: how long the rank waited for its batch. Empty where not measured."""

    work: tuple[float, ...] = ()
    """Of each of these steps: how much this rank had to do, such as its tokens. Empty where all
    steps are alike."""

    step_work: float | None = None
    """The same of the step in progress."""

    @property
    def ended_step(self) -> int:
        """Number of the last step that ended; 0 before the first."""
        return self.steps[-1] if self.steps else 0


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

    clock_offsets_s: Mapping[str, float] = field(default_factory=dict)
    """To add to a host's monotonic clock so that hosts can be compared; empty where unknown."""
