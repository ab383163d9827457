"""What a rank's telemetry says at one moment, as plain values.

Times are seconds of the host's monotonic clock: they compare between processes of one host, never
between hosts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class CollectiveRecord:
    """One collective of one rank."""

    communicator: str
    """The same on all ranks that meet in it, and no other's: axis, group and, where one rank
    sends to another, the two."""

    sequence: int
    """Its number on this communicator, counted from 1: ranks of one communicator that run the
    same number are in the same collective."""

    kind: str
    """Such as `all_reduce`."""

    sent_bytes: int
    """What this rank sends; 0 where it only receives."""

    phase: str
    """Of the rank when it was asked for."""

    enqueued_s: float
    """When it was asked for."""

    started_s: float | None
    """When it was handed to the backend; later than `enqueued_s` where a thread carries it."""

    ended_s: float | None
    """When this rank saw that it was over."""

    awaited_s: float | None = None
    """When this rank began to wait for it; None while compute goes on beside it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankReading:
    """What one rank last wrote. Tuples of steps are in order, the newest last, and as long as
    each other."""

    rank: int
    pid: int
    generation: int
    """How often ranks have met anew; sequences start again with each."""

    heartbeat_s: float
    """When the process last showed that it runs at all, whatever it waits for."""

    phase: str
    phase_since_s: float
    step: int
    round: int
    last_sequence: Mapping[str, int]
    """Per communicator, the newest collective that was asked for."""

    members: Mapping[str, tuple[int, ...]]
    """Per communicator, the ranks that meet in it; empty where they were too many to write."""

    pending: tuple[CollectiveRecord, ...]
    """Not ended, in the order in which they were asked for."""

    recent: tuple[CollectiveRecord, ...]
    """Ended, in the order in which they were asked for."""

    steps: tuple[int, ...] = field(default=())
    """Numbers of the last steps."""

    step_ended_s: tuple[float, ...] = field(default=())
    compute_s: tuple[float, ...] = field(default=())
    """From the beginning of each step to its first blocking collective: what a rank takes by
    itself, whoever it then waits for."""

    waited_s: tuple[float, ...] = field(default=())
    """Seconds of each step in which it waited for others."""

    unrecorded: int = 0
    """Collectives that found no room for their communicator's name."""
