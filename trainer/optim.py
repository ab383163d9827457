"""AdamW as a training step uses it, and its states beside the weights.

Guarantees, each asserted in tests/trainer/test_optim.py:
- it is torch's AdamW, bit by bit, with a gradient scale inside the update;
- moments and the number of updates restore it.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from trainer.config import OptimConfig
from trainer.model.holder import HasParameters
from trainer.movement import Movement

MOMENTS = ("exp_avg", "exp_avg_sq")


class Optimizer(Protocol):
    """What training needs of an optimizer, wherever its states are."""

    @property
    def moment_names(self) -> tuple[str, ...]:
        """What it keeps of every parameter."""

    @property
    def placement(self) -> str:
        """Where states are: `device`, `host`, `interleaved` or `disk`."""

    @property
    def share(self) -> float | None:
        """Share of the states that the device updates, where the recipe fixes it."""

    @property
    def updates(self) -> int:
        """Updates made so far, skipped steps not counted."""

    @property
    def movement(self) -> Movement | None:
        """Of the last update; None where nothing moves."""

    def update(self, learning_rate: float, *, grad_scale: float, share: float | None) -> None:
        """Update all parameters that have a gradient; gradients count times `grad_scale` and may
        be overwritten. `share` is as above; None leaves it to measured rates."""

    def moments(self) -> dict[str, Tensor]:
        """All moments of every parameter as they are now, by name: for reading."""

    def moments_to_fill(self) -> dict[str, Tensor]:
        """Tensors of the same names and forms, to be filled and handed to `restored`."""

    def restored(self, moments: Mapping[str, Tensor], updates: int) -> None:
        """Go on with these moments, as after `updates` updates. Weights are restored before."""

    def close(self) -> None:
        """Let go of what is outside the device. Called once, after the last update."""


class _ScaledAdamW(torch.optim.AdamW):
    """With the attributes in which gradient scalers leave word to the fused kernel."""

    grad_scale: Tensor | None = None
    """The kernel divides gradients by it."""

    found_inf: Tensor | None = None


class DeviceAdamW:
    """Fused AdamW with its moments beside the weights; an `Optimizer`.

    The moments are allocated here and not in the first step, so that a run that does not fit fails
    before it trains, and so that the first checkpoint has all parts.
    """

    placement = "device"
    share: float | None = None
    movement: Movement | None = None
    moment_names = MOMENTS

    def __init__(self, model: HasParameters, config: OptimConfig) -> None:
        self._named = dict(model.named_parameters())
        self._optimizer = _ScaledAdamW(
            parameter_groups(self._named.values(), config),
            lr=config.lr,
            betas=config.betas,
            eps=config.eps,
            fused=True,
        )
        for parameter in self._named.values():
            state = self._optimizer.state[parameter]
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            for moment in MOMENTS:
                state[moment] = torch.zeros_like(parameter, memory_format=torch.preserve_format)

    @property
    def updates(self) -> int:
        return int(next(iter(self._optimizer.state.values()))["step"].item())

    def update(self, learning_rate: float, *, grad_scale: float, share: float | None) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.grad_scale = self._divisor(grad_scale)
        self._optimizer.step()

    def moments(self) -> dict[str, Tensor]:
        """The live tensors, not copies."""
        return {
            moment_name(moment, name): self._optimizer.state[parameter][moment]
            for name, parameter in self._named.items()
            for moment in MOMENTS
        }

    def moments_to_fill(self) -> dict[str, Tensor]:
        """The live tensors."""
        return self.moments()

    def restored(self, moments: Mapping[str, Tensor], updates: int) -> None:
        for name, live in self.moments().items():
            if moments[name] is not live:
                live.copy_(moments[name])
        for state in self._optimizer.state.values():
            state["step"].fill_(float(updates))

    def close(self) -> None:
        """Nothing is outside the device."""

    def _divisor(self, grad_scale: float) -> Tensor | None:
        if grad_scale == 1.0:
            return None
        device = next(iter(self._named.values())).device
        return torch.full((), 1.0 / grad_scale, dtype=torch.float32, device=device)


def moment_name(moment: str, parameter: str) -> str:
    """What a checkpoint calls a moment of a parameter."""
    return f"optim.{moment}.{parameter}"


def parameter_groups(
    parameters: Iterable[nn.Parameter], config: OptimConfig
) -> list[dict[str, Any]]:
    """Groups for an optimizer over `parameters`: matrices decay, vectors do not."""
    everything = list(parameters)
    groups = [
        {
            "params": [p for p in everything if p.ndim >= 2],
            "weight_decay": config.decay,
        },
        {"params": [p for p in everything if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
