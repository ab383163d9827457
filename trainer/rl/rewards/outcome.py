"""What is asked of reward workers, what comes back, and why it may be nothing. Pure data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class FaultKind(StrEnum):
    """Why a prompt has no rewards."""

    RAISED = "raised"
    TIMEOUT = "timeout"
    MEMORY = "memory"
    EXITED = "exited"
    """The process ended itself, or was killed by a signal."""

    WRONG_COUNT = "wrong_count"
    NO_NUMBER = "no_number"
    NOT_FINITE = "not_finite"
    GARBLED = "garbled"
    """The reply was no reply, or too long."""


@dataclass(frozen=True)
class Fault:
    """Why, and the words for it."""

    kind: FaultKind
    reason: str


@dataclass(frozen=True, kw_only=True)
class RewardRequest:
    """The samples of one prompt."""

    number: int
    """The caller's name for it, unique among requests under way."""

    prompt: str
    completions: Sequence[str]
    reference: Mapping[str, Any] = field(default_factory=dict)
    """JSON values."""


@dataclass(frozen=True, kw_only=True)
class RewardResult:
    """Either rewards, one finite number per sample, or a fault; never both."""

    number: int
    rewards: tuple[float, ...] | None
    fault: Fault | None = None
    seconds: float = 0.0
    """From hand-over to reply."""
