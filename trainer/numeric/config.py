"""What is done about losses and gradients that are wrong, as the recipe says it. Pure data: neither
torch nor ray."""

from dataclasses import dataclass
from typing import Literal

MOST_ROLLBACKS = 50
"""All of them are described in every snapshot."""


@dataclass(frozen=True, kw_only=True)
class NumericConfig:
    """Losses and gradients that are not finite, and spikes of either. A step is judged before its
    update, on all ranks alike."""

    on_nan: Literal["skip", "rollback", "stop"] = "skip"
    """What a step with non-finite loss or gradients leads to: `skip` does without its update (at
    most train.max_skipped_steps in a row), `rollback` goes back to an earlier state and on with the
    next batch, `stop` ends the run with exit code 11."""

    on_spike: Literal["ignore", "skip", "rollback", "stop"] = "ignore"
    """The same of a spike in loss or gradient norm; `ignore` trains on, and tells of it."""

    spike_deviations: float = 8.0
    """A spike lies so many robust standard deviations above the median of recent steps, and twice
    as far above it as the worst of them."""

    spike_patience_steps: int = 1
    """Spikes in a row before anything is done; those before are trained on and told."""

    rollback_steps: int = 20
    """How old the state that a rollback goes back to is at least. What was trained since is undone,
    and its batches are not trained on."""

    max_rollbacks: int = 3
    """Rollbacks of the whole run; one more ends it with exit code 11."""

    skip_steps: tuple[int, ...] = ()
    """Steps whose batches are left out: known bad ones."""

    def __post_init__(self) -> None:
        if self.spike_deviations < 3.0:
            raise ValueError(
                f"numeric.spike_deviations={self.spike_deviations:g} is within the noise of "
                "healthy training; choose at least 3"
            )
        if self.spike_patience_steps < 1:
            raise ValueError(
                f"numeric.spike_patience_steps must be at least 1, got {self.spike_patience_steps}"
            )
        if self.rollback_steps < 1:
            raise ValueError(
                f"numeric.rollback_steps must be at least 1, got {self.rollback_steps}; to stay "
                "where the run is, set on_nan and on_spike to skip"
            )
        if not 1 <= self.max_rollbacks <= MOST_ROLLBACKS:
            raise ValueError(
                f"numeric.max_rollbacks must lie in [1, {MOST_ROLLBACKS}], got "
                f"{self.max_rollbacks}; to end at once, set on_nan and on_spike to stop"
            )
        if any(step < 1 for step in self.skip_steps):
            raise ValueError(
                f"numeric.skip_steps={list(self.skip_steps)}: steps are counted from 1"
            )

    @property
    def rolls_back(self) -> bool:
        """Whether anything leads to a rollback."""
        return "rollback" in (self.on_nan, self.on_spike)
