"""What replicas sent each other in one step, where they compress gradients."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Exchanged:
    """Of one rank."""

    sent_bytes: int
    dense_bytes: int
    """What whole gradients would have been."""

    waited_s: float
    """Seconds that compute did not hide."""

    error_norm: float
    """Norm of what this rank has not sent yet."""

    @property
    def saving(self) -> float:
        """How many times fewer bytes than whole gradients."""
        return self.dense_bytes / max(1, self.sent_bytes)
