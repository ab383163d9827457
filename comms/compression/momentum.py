"""Momentum before compression ("momentum correction", arXiv 1712.01887, section 3.2)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from comms.compression.state import Slot


@dataclass(frozen=True)
class Momentum:
    """Turns gradients into velocities, so that the optimizer applies no momentum of its own."""

    factor: float
    nesterov: bool

    def apply(self, slot: Slot, flat: Tensor, *, name: str = "velocity") -> Tensor:
        """What to send instead of a gradient: `flat` itself at factor 0, else a tensor that
        belongs to the slot or is `flat`, overwritten. Nobody may write to it.

        Plain: u <- m u + g, send u. Nesterov: u <- m (u + g), send u + g.
        """
        if self.factor == 0:
            return flat
        before = slot.get(name, flat)
        velocity = slot.buffer(name, flat)
        slot.replace(name, velocity)
        if self.nesterov:
            torch.add(before, flat, out=velocity).mul_(self.factor)
            return flat.add_(velocity)
        return torch.add(flat, before, alpha=self.factor, out=velocity)
