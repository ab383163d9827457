"""AdamW with its state made at once, and that state as named tensors."""

import torch
from torch import Tensor

from trainer.config import OptimConfig
from trainer.model.holder import HasParameters

_MOMENTS = ("exp_avg", "exp_avg_sq")


def build_adamw(model: HasParameters, config: OptimConfig) -> torch.optim.AdamW:
    """Fused AdamW over the model's parameters; matrices decay, vectors do not.

    The moments are allocated here and not in the first step, so that a run that does not fit
    fails before it trains, and so that the first checkpoint has all parts.
    """
    parameters = [parameter for _, parameter in model.named_parameters()]
    matrices = [p for p in parameters if p.ndim >= 2]
    vectors = [p for p in parameters if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )
    for parameter in parameters:
        state = optimizer.state[parameter]
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        for moment in _MOMENTS:
            state[moment] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Use `learning_rate` from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def moments(model: HasParameters, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Both moments of every parameter, by name; the live tensors, not copies."""
    return {
        f"optim.{moment}.{name}": optimizer.state[parameter][moment]
        for name, parameter in model.named_parameters()
        for moment in _MOMENTS
    }


def updates_done(optimizer: torch.optim.Optimizer) -> int:
    """Updates made so far, skipped steps not counted."""
    return int(next(iter(optimizer.state.values()))["step"].item())


def set_updates_done(optimizer: torch.optim.Optimizer, updates: int) -> None:
    """Go on as after `updates` updates."""
    for state in optimizer.state.values():
        state["step"].fill_(float(updates))
