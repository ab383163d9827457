"""The place of each subgroup, step by step, and the rates that it follows.

A change of share takes effect with the next step's first gradient: gradients of one step all go
where their subgroup is updated.
"""

from collections.abc import Sequence
from typing import Literal

import torch

from offload.engine import Lanes
from offload.rates import measure_rates
from offload.schedule import (
    Place,
    Prediction,
    Rates,
    choose_share,
    place_subgroups,
    predict,
    refit,
    spread,
)
from offload.subgroups import Subgroup


class Placing:
    """Holds the share; measures, refits and, if asked to, follows the rates."""

    def __init__(self, subgroups: Sequence[Subgroup], *, disk_share: float) -> None:
        self._sizes = [subgroup.size for subgroup in subgroups]
        self._disk = round(_fraction("disk_share", disk_share) * len(subgroups))
        self.on_disk = spread(len(subgroups), self._disk)
        self._device = 0
        self._follow = False
        self._latched: tuple[Place, ...] | None = None
        self.rates: Rates | None = None

    def start(self, share: float | Literal["auto"], lanes: Lanes, device: torch.device) -> None:
        """Measure rates where there is a choice, and take the first share."""
        self._has_device = lanes.device is not None
        if share == "auto" and self._has_device:
            self._follow = True
            self.rates = measure_rates(device, max(self._sizes, default=0))
            self._choose()
        elif share != "auto":
            self.set_share(share)

    def set_share(self, share: float) -> None:
        """From the next step on, let the device update this share of what is not on disk."""
        movable = len(self._sizes) - self._disk
        chosen = round(_fraction("share", share) * movable)
        self._follow = False
        self._device = chosen if self._has_device else 0

    @property
    def share(self) -> float:
        """The device's share of the subgroups that are not on disk."""
        movable = len(self._sizes) - self._disk
        return self._device / movable if movable else 0.0

    def latched(self) -> tuple[Place, ...]:
        """The places of the step under way, fixed by the first call after `release`."""
        if self._latched is None:
            self._latched = self.places()
        return self._latched

    def release(self) -> None:
        """The step is over or dropped; the next one may place anew."""
        self._latched = None

    def places(self) -> tuple[Place, ...]:
        """The places that the next step will use."""
        return place_subgroups(len(self._sizes), device=self._device, disk=self._disk)

    def observe(self, seen: Rates) -> None:
        """Refit with what a step showed, and follow it if the share is automatic."""
        if self.rates is None:
            self.rates = seen if seen.host_parameters_per_s > 0.0 else None
            return
        self.rates = refit(self.rates, seen)
        if self._follow:
            self._choose()

    def predicted(self) -> Prediction | None:
        """Seconds of the next update, once rates are known."""
        if self.rates is None or (self._disk and self.rates.disk_bytes_per_s == 0.0):
            return None
        return predict(self._sizes, self.places(), self.rates)

    def _choose(self) -> None:
        assert self.rates is not None, "a share follows measured rates"
        self._device, _ = choose_share(self._sizes, self.rates, disk=self._disk)


def _fraction(name: str, value: float) -> float:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must be between 0 and 1, got {value}")
    return value
