"""What a training step needs of gradients, however the model is spread."""

from typing import Protocol

from torch import Tensor


class Gradients(Protocol):
    """Gradients of all parameters, summed over the ranks of an island, which all call each method
    alike."""

    def start_round(self, *, last: bool) -> None:
        """Called before each forward and backward; `last` on the final one of a step."""

    def finish(self) -> None:
        """Called after the last backward of a step; returns when all sums are there."""

    def squared_norm(self) -> Tensor:
        """This rank's share of the squared global norm, 0-dim fp32 on the gradients' device: the
        shares of all ranks of the island add up to it."""

    def zero(self) -> None:
        """Forget all gradients. Called once per step, after the optimizer."""
