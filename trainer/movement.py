"""Pure: what optimizer states and activations moved between device, host memory and disk."""

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


@dataclass(frozen=True, kw_only=True)
class ActivationMovement:
    """Of one step's activations on this rank: bytes, and what of the moving was felt."""

    stored_bytes: int
    fetched_bytes: int
    recomputed_bytes: int
    """Computed again token by token instead; blocks that are run again whole are not counted."""

    saved_bytes: int
    """Most that was neither in memory nor on its way back at one time."""

    transfer_s: float
    """What the bytes take at the tier's measured rate."""

    exposed_s: float
    """Waiting for bytes to leave or to come back."""

    @property
    def hidden_s(self) -> float:
        """Transfers that compute hid."""
        return max(self.transfer_s - self.exposed_s, 0.0)
