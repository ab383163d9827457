"""What the watchdog says."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["lost", "hang", "slow", "numeric", "storage", "data", "memory"]

Cause = Literal[
    "process-gone",
    "rank-silent",
    "host-silent",
    "all-silent",
    "process-stopped",
    "never-arrived",
    "never-started",
    "no-progress",
    "all-arrived",
    "order-mismatch",
    "kind-mismatch",
    "data-loader",
    "storage",
    "slow-compute",
    "slow-link",
    "slow-sender",
    "slow-receiver",
    "slow-endpoint",
    "slow-communication",
    "slow-data",
    "not-finite",
    "loss-jump",
    "memory-slope",
]

COMMUNICATION_CAUSES: frozenset[Cause] = frozenset(
    (
        "all-arrived",
        "slow-link",
        "slow-sender",
        "slow-receiver",
        "slow-endpoint",
        "slow-communication",
    )
)
"""Causes that lie between processes; the others lie in one of them."""

_SEVERITY: dict[Kind, int] = {
    "lost": 0,
    "hang": 1,
    "numeric": 2,
    "storage": 3,
    "data": 4,
    "slow": 5,
    "memory": 6,
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong, and who it is."""

    kind: Kind
    cause: Cause
    detected_after_s: float
    """Since the first sign of it."""

    confidence: float
    """From 0 to 1: how likely `rank`, `host` and `link` name the culprit."""

    evidence: tuple[str, ...]
    """Sentences, the strongest first."""

    rank: int | None = None
    """The culprit; None where it is no single rank."""

    host: str | None = None
    link: tuple[str, str] | None = None
    """The two ends of a bad link: hosts, or `rank N` where both are on one host."""

    phase: str = ""
    step: int = 0
    communicator: str | None = None
    sequence: int | None = None
    may_heal: bool = False
    """Whether it may pass by itself, as a cut link does when it comes back. A connection resumes up
    to as long after the cut as the cut lasted, since retransmissions back off: wait that long
    before you throw work away."""

    @property
    def communication(self) -> bool:
        """Whether the cause lies between processes, not in one."""
        return self.cause in COMMUNICATION_CAUSES

    @property
    def title(self) -> str:
        """The class, in the terms of C4 (arXiv 2406.04594) where it is a hang or slow."""
        if self.kind in ("hang", "slow"):
            return f"{'' if self.communication else 'non-'}communication {self.kind}"
        return self.kind

    @property
    def key(self) -> tuple[str, int | None, str | None, tuple[str, str] | None]:
        """Equal for two findings about the same trouble."""
        return self.cause, self.rank, self.host, self.link

    def __str__(self) -> str:
        """One line: what, who, where, why."""
        who = [f"rank {self.rank}"] if self.rank is not None else []
        who += [f"link {self.link[0]} - {self.link[1]}"] if self.link else []
        who += [f"on {self.host}"] if self.host else []
        where = f"phase {self.phase}, step {self.step}" if self.phase else f"step {self.step}"
        return (
            f"{self.title} ({self.cause}): {' '.join(who) or 'no single rank'}, {where}, after "
            f"{self.detected_after_s:.1f} s: {'; '.join(self.evidence)}"
        )


def ordered(findings: list[Finding]) -> tuple[Finding, ...]:
    """The most serious first; among equals the surest, then the longest."""
    return tuple(
        sorted(
            findings,
            key=lambda found: (
                _SEVERITY[found.kind],
                -found.confidence,
                -found.detected_after_s,
                -1 if found.rank is None else found.rank,
            ),
        )
    )
