"""Whose gradient it is that is not finite.

Gradients are summed over ranks while backward runs, so one rank's NaN is soon everybody's. What
arrives at the embedding, or at the first layer of a stage, is still this rank's own, and whatever
went wrong behind it in the model shows there.
"""

import torch
from torch import Tensor


class GradientWatch:
    """A hook for the gradient of what a model's first layer is given. It waits for no device."""

    def __init__(self) -> None:
        self._bad: Tensor | None = None

    def __call__(self, gradient: Tensor) -> None:
        bad = ~torch.isfinite(gradient.detach().sum(dtype=torch.float32))
        self._bad = bad if self._bad is None else self._bad | bad

    def take(self) -> bool:
        """Whether any gradient since the last call was not finite."""
        bad, self._bad = self._bad, None
        return bad is not None and bool(bad)
