"""SGD with momentum as a training step uses it, and its state beside the weights.

Guarantees, each asserted in tests/trainer/test_sgd.py:
- it is torch's SGD, with a gradient scale inside the update;
- where momentum has been applied to the gradients before they came here, it is not applied again,
  and weight decay gets its own: everything sent, the updates are those of torch's SGD;
- the momentum and the number of updates restore it.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from comms.compression.sgd import CorrectedSGD
from trainer.config import OptimConfig
from trainer.model.holder import HasParameters
from trainer.movement import Movement
from trainer.optim import moment_name, parameter_groups

MOMENTUM = "momentum"


class DeviceSGD:
    """SGD with its momentum beside the weights; an `Optimizer`.

    With `momentum_applied`, gradients carry their momentum already, and what is kept here is that
    of weight decay. The momentum is allocated here, so that the first checkpoint has all parts.
    """

    placement = "device"
    share: float | None = None
    movement: Movement | None = None
    moment_names = (MOMENTUM,)

    def __init__(
        self, model: HasParameters, config: OptimConfig, *, momentum_applied: bool
    ) -> None:
        self._named = dict(model.named_parameters())
        self._updates = 0
        kind = CorrectedSGD if momentum_applied else torch.optim.SGD
        self._state_name = "decay" if momentum_applied else "momentum_buffer"
        self._optimizer = kind(
            parameter_groups(self._named.values(), config),
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
        )
        for parameter in self._named.values():
            kept = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            self._optimizer.state[parameter][self._state_name] = kept

    @property
    def updates(self) -> int:
        return self._updates

    def update(self, learning_rate: float, *, grad_scale: float, share: float | None) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        if grad_scale != 1.0:
            grads = [p.grad for p in self._named.values() if p.grad is not None]
            torch._foreach_mul_(grads, grad_scale)
        self._optimizer.step()
        self._updates += 1

    def moments(self) -> dict[str, Tensor]:
        """The live tensors, not copies."""
        return {
            moment_name(MOMENTUM, name): self._optimizer.state[parameter][self._state_name]
            for name, parameter in self._named.items()
        }

    def moments_to_fill(self) -> dict[str, Tensor]:
        """The live tensors."""
        return self.moments()

    def restored(self, moments: Mapping[str, Tensor], updates: int) -> None:
        for name, live in self.moments().items():
            if moments[name] is not live:
                live.copy_(moments[name])
        self._updates = updates

    def close(self) -> None:
        """Nothing is outside the device."""
