"""SGD for gradients that already carry their momentum."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


class CorrectedSGD(torch.optim.Optimizer):
    """What `torch.optim.SGD` with momentum and weight decay does, where momentum has been applied
    to the gradients before they were compressed (`dgc`):

        exchange = Exchange(CompressionConfig(method="dgc", momentum=0.9), group=dist.new_group())
        optimizer = CorrectedSGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)

    Weight decay is known everywhere and need not travel: it alone gets its momentum here, so no
    term gets it twice. Without weight decay this is `torch.optim.SGD` without momentum. `momentum`
    and `nesterov` must be those of the exchange.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        *,
        lr: float,
        momentum: float,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum={momentum} must be in [0, 1); 0.9 is usual.")
        if weight_decay < 0 or lr < 0:
            raise ValueError(f"lr={lr} and weight_decay={weight_decay} must not be negative.")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters: list[Tensor] = [p for p in group["params"] if p.grad is not None]
            updates = [p.grad for p in parameters if p.grad is not None]
            if group["weight_decay"]:
                updates = list(torch._foreach_add(updates, self._decay(parameters, group)))
            if parameters:
                torch._foreach_add_(parameters, updates, alpha=-group["lr"])
        return loss

    def _decay(self, parameters: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """The weight decay term with its momentum."""
        now = list(torch._foreach_mul(parameters, group["weight_decay"]))
        if group["momentum"] == 0:
            return now
        for parameter in parameters:
            self.state[parameter].setdefault("decay", torch.zeros_like(parameter))
        kept = [self.state[parameter]["decay"] for parameter in parameters]
        torch._foreach_mul_(kept, group["momentum"])
        torch._foreach_add_(kept, now)
        if group["nesterov"]:
            torch._foreach_add_(now, kept, alpha=group["momentum"])
            return now
        return kept
