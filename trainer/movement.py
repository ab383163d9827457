"""Pure: what optimizer states moved between device, host memory and disk."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Movement:
    """Of one update on this rank: bytes, and what of the moving was felt."""

    moved_bytes: dict[str, int]
    """By route: `fetched` to and `flushed` from the device, `disk_read`, `disk_written`."""

    update_s: float
    """Wall time of the update."""

    stall_s: float
    """The part of it in which there was nothing to compute until states arrived."""

    device_share: float
    """Share of the states in memory that the device updated."""

    @property
    def hidden(self) -> float:
        """Share of the update's time that no movement lengthened."""
        return 1.0 - min(1.0, self.stall_s / self.update_s) if self.update_s > 0.0 else 1.0
