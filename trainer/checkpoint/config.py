"""When state is saved, as the recipe says it. Pure data: neither torch nor ray."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When state is saved and how much of it is kept."""

    interval_steps: int = 100
    """Steps between checkpoints; 0 saves only by time and at the end."""

    interval_s: float = 0.0
    """Seconds between checkpoints; 0 saves only by steps and at the end."""

    keep_last: int = 3
    """Complete checkpoints kept."""

    blocking: bool = False
    """Whether training waits until a checkpoint is on disk."""

    rehearse: bool = True
    """Whether a fresh run saves at step 0, so that a save failure costs a minute and not a run."""

    def __post_init__(self) -> None:
        if self.interval_steps < 0 or self.interval_s < 0:
            raise ValueError(
                "checkpoint.interval_steps and checkpoint.interval_s must not be negative, got "
                f"{self.interval_steps} and {self.interval_s}"
            )
        if self.keep_last < 1:
            raise ValueError(f"checkpoint.keep_last must be at least 1, got {self.keep_last}")
