"""What a worker process says of itself when asked. Plain data, so that reading needs no torch."""

from dataclasses import dataclass
from typing import Any

from cluster.failure import Failure


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How training ended in one process."""

    kind: str
    """`finished`, `stopped` or `regrouped`: others go on from what is in memory."""

    step: int
    checkpoint: str | None
    """Folder name of the last complete checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Memory at one moment."""

    host_used_bytes: int
    """In use on the host, all processes together; caches that can be dropped do not count."""

    host_total_bytes: int
    process_bytes: int
    """Resident in this process."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One answer of one worker."""

    rank: int
    phase: str
    step: int
    elapsed_s: float
    """Seconds since the phase began, by the worker's own clock."""

    memory: Memory
    reports: tuple[dict[str, Any], ...]
    """Steps done since the last question, oldest first: the lines of metrics.jsonl with
    `total_steps`. Empty but for rank 0."""

    outcome: Outcome | None = None
    failure: Failure | None = None


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where one rank runs."""

    rank: int
    node_id: str
    host: str
    """Name of the machine, for messages."""

    address: str
    """The address other ranks reach it at."""

    local_rank: int
    """Position among the ranks of its node."""

    local_world_size: int
    device: int
    """Position of its device among those of its node."""
