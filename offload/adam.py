"""AdamW on flat fp32 segments, on the host or on the device by the same call.

The arithmetic is torch's fused kernel (Loshchilov and Hutter, arXiv 1711.05101): on the CPU it is
vectorised and reads and writes every byte once. On segments cut at cache lines it gives the bits of
`torch.optim.AdamW(fused=True)` on whole parameters.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class AdamRule:
    """Hyperparameters of one parameter group at one step."""

    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float


def adam_update(
    rule: AdamRule,
    *,
    masters: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[float],
    grad_scale: float = 1.0,
) -> None:
    """Update fp32 `masters` and moments in place, all tensors on one device.

    `steps` counts each master's updates, this one included. Gradients are multiplied by
    `grad_scale` inside the update; where it is not 1, they are changed in place.
    """
    if not masters:
        return
    device = masters[0].device
    counters = {
        step: torch.full((), step, dtype=torch.float32, device=device) for step in set(steps)
    }
    inverse = None
    if grad_scale != 1.0:
        # The kernel divides, as gradient scalers want it.
        inverse = torch.full((), 1.0 / grad_scale, dtype=torch.float32, device=device)
    torch._fused_adamw_(
        list(masters),
        list(grads),
        list(exp_avgs),
        list(exp_avg_sqs),
        [],
        [counters[step] for step in steps],
        lr=rule.lr,
        beta1=rule.betas[0],
        beta2=rule.betas[1],
        weight_decay=rule.weight_decay,
        eps=rule.eps,
        amsgrad=False,
        maximize=False,
        grad_scale=inverse,
        found_inf=None,
    )
