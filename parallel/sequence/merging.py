"""Merge parts of attention over different keys, and what their gradients need of the whole.

T queries, H query heads, d head width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def merge_(out_THd: Tensor, lse_TH: Tensor, part_THd: Tensor, part_lse_TH: Tensor) -> None:
    """Add attention over further keys to `out_THd` (fp32) and `lse_TH`, in place."""
    weight_TH1 = torch.sigmoid(part_lse_TH - lse_TH).unsqueeze(-1)
    out_THd.lerp_(part_THd.to(out_THd.dtype), weight_TH1)
    torch.logaddexp(lse_TH, part_lse_TH, out=lse_TH)


def row_sums(grad_THd: Tensor, out_THd: Tensor) -> Tensor:
    """Sum of gradient × output of every query and head, fp32 [T, H]: all that the gradients need
    of the output."""
    return torch.linalg.vecdot(grad_THd.float(), out_THd.float())


def output_from_sums(grad_THd: Tensor, sums_TH: Tensor) -> Tensor:
    """An output with the given `row_sums`, in the dtype of the gradient.

    The kernels ask for an output but use its row sums alone. Scaled by the largest element first,
    so that no square of a small gradient underflows.
    """
    grad = grad_THd.float()
    largest_TH1 = grad.abs().amax(dim=-1, keepdim=True).clamp_min(torch.finfo(grad.dtype).tiny)
    unit = grad / largest_TH1
    squares_TH = torch.linalg.vecdot(unit, unit).clamp_min(torch.finfo(grad.dtype).tiny)
    scale_TH = sums_TH / largest_TH1.squeeze(-1) / squares_TH
    return (unit * scale_TH.unsqueeze(-1)).to(grad_THd.dtype)


def joined(parts: Sequence[tuple[Tensor, ...]]) -> Any:
    """Tuples of tensors, each position concatenated along the tokens."""
    return parts[0] if len(parts) == 1 else tuple(torch.cat(p) for p in zip(*parts, strict=True))
