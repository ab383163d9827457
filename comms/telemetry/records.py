"""What a rank's telemetry says at one moment, as plain values.

Times are seconds of the host's monotonic clock: they compare between processes of one host, never
between hosts.
"""

from collections.abc import Mapping
from dataclasses import dataclass


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

    @property
    def duration_s(self) -> float | None:
        """From start (or enqueue, where no start was recorded) to end; None while it is pending."""
        if self.ended_s is None:
            return None
        return self.ended_s - (self.enqueued_s if self.started_s is None else self.started_s)


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

    pending: tuple[CollectiveRecord, ...] = ()
    """Not ended, in the order in which they were asked for."""

    recent: tuple[CollectiveRecord, ...] = ()
    """Ended, in the order in which they were asked for."""

    steps: tuple[int, ...] = ()
    """Numbers of the last steps."""

    step_ended_s: tuple[float, ...] = ()
    compute_s: tuple[float, ...] = ()
    """From the arrival of each step's batch to its first blocking collective: what a rank takes by
    itself, whoever it then waits for. Without the time in which its thread waited for a core."""

    waited_s: tuple[float, ...] = ()
    """Seconds of each step, from the end of the one before, in which it waited for others or for a
    core."""

    data_s: tuple[float, ...] = ()
    """Seconds of each step in which it waited for its batch. Empty where not measured."""

    work: tuple[float, ...] = ()
    """Of each step: how much this rank had to do, in any unit that its ranks share; 0 where that is
    not known. Empty where all steps are alike."""

    step_work: float = 0.0
    """The same of the step in progress."""

    unrecorded: int = 0
    """Collectives that found no room for their communicator's name."""

    @property
    def ended_step(self) -> int:
        """Number of the last step that ended; 0 before the first."""
        return self.steps[-1] if self.steps else 0
