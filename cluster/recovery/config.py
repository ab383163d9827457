"""What a run survives, as the recipe says it. Pure data: neither torch nor ray."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class RecoveryConfig:
    """What is done about faults."""

    max_restarts: int = 20
    """Recoveries within `restart_window_s` before the run ends with exit code 12; 0 ends it at the
    first fault."""

    restart_window_s: float = 3600.0
    """Seconds over which recoveries are counted."""

    backoff_s: float = 1.0
    """Pause before a recovery when the one before it did not come to a single step; it doubles each
    time."""

    replace_within_s: float = 30.0
    """Seconds to wait for a new process in the place of one that is lost, before the run goes on
    with fewer ranks."""

    min_workers: int = 1
    """Fewest ranks to go on with; with cluster.num_workers it never shrinks."""

    free_within_s: float = 5.0
    """Seconds that ranks may take to notice that a peer is gone; a process that is still blocked
    then is replaced."""

    cordon_after: int = 2
    """A host that was lost so often within `cordon_window_s` gets no ranks any more in this run; 0
    takes back every host that returns."""

    cordon_window_s: float = 3600.0
    """Seconds over which losses of a host are counted."""

    grow: Literal["auto", "never"] = "auto"
    """Whether a run that lost ranks takes more again when a host returns or other room is found. It
    does so at a step that is in memory, or was just saved."""

    grow_after_s: float = 30.0
    """Seconds from a change of ranks until room is looked for; they double with every loss."""

    rescue_after_s: float = 60.0
    """Seconds without a word of the driver until a host saves its snapshots to disk, unless a new
    driver has gone on from them; 0 leaves them in memory."""

    def __post_init__(self) -> None:
        if self.max_restarts < 0:
            raise ValueError(f"recovery.max_restarts must not be negative, got {self.max_restarts}")
        if self.cordon_after < 0:
            raise ValueError(f"recovery.cordon_after must not be negative, got {self.cordon_after}")
        if self.rescue_after_s < 0:
            raise ValueError(
                f"recovery.rescue_after_s must not be negative, got {self.rescue_after_s}; 0 saves "
                "nothing"
            )
        if self.min_workers < 1:
            raise ValueError(f"recovery.min_workers must be at least 1, got {self.min_workers}")
        for name in (
            "restart_window_s",
            "backoff_s",
            "replace_within_s",
            "free_within_s",
            "cordon_window_s",
            "grow_after_s",
        ):
            if getattr(self, name) <= 0:
                raise ValueError(f"recovery.{name} must be positive, got {getattr(self, name)}")
