"""Token and expert pairs as rows sorted by the slot that holds their expert.

T tokens, D row width, k experts per token, P = T k pairs, of which R are kept as rows, V slots.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


class SortedRows:
    """The order in which pairs become rows; equal slots keep the order of tokens."""

    def __init__(self, slots_Tk: Tensor, counts_V: Tensor, kept_Tk: Tensor | None = None) -> None:
        """`counts_V` are the kept pairs of each slot. `kept_Tk` is false on pairs to drop; the host
        then waits for their number. None keeps all."""
        self.counts_V = counts_V
        self._num_tokens, self._top_k = slots_Tk.shape
        slots_P = slots_Tk.flatten()
        if kept_Tk is not None:
            slots_P = slots_P.masked_fill(~kept_Tk.flatten(), counts_V.numel())
        self._order_P = slots_P.argsort(stable=True)
        self._place_P = torch.empty_like(self._order_P)
        self._place_P[self._order_P] = torch.arange(slots_P.numel(), device=slots_P.device)
        # Dropped pairs are last in the order.
        self._num_rows = None if kept_Tk is None else int(kept_Tk.sum().item())

    def copies(self, x_TD: Tensor) -> Tensor:
        """Each row's token: [R, D]."""
        x_PD = _SortedCopies.apply(x_TD, self._order_P, self._place_P, self._top_k)
        return x_PD if self._num_rows is None else x_PD[: self._num_rows]

    def combined(self, y_RD: Tensor, weights_Tk: Tensor) -> Tensor:
        """Each token's rows, weighted and added: [T, D]. Dropped pairs add nothing."""
        if self._num_rows is not None:
            y_RD = F.pad(y_RD, (0, 0, 0, self._order_P.numel() - self._num_rows))
        y_TkD = _Permuted.apply(y_RD, self._place_P, self._order_P)
        y_TkD = y_TkD.unflatten(0, (self._num_tokens, self._top_k))
        return (y_TkD * weights_Tk.to(y_TkD.dtype).unsqueeze(-1)).sum(dim=1)


class _SortedCopies(Function):
    """Row r of the output is token order[r] // k.

    The gradient is gathered and summed per token in a fixed order; the usual scatter-add is not
    deterministic on CUDA.
    """

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, order_P: Tensor, place_P: Tensor, top_k: int) -> Tensor:
        ctx.save_for_backward(place_P)
        ctx.top_k = top_k
        return x_TD.index_select(0, order_P // top_k)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_PD: Tensor) -> tuple[Tensor, None, None, None]:
        (place_P,) = ctx.saved_tensors
        grad_TkD = grad_PD.index_select(0, place_P).unflatten(0, (-1, ctx.top_k))
        return grad_TkD.sum(dim=1), None, None, None


class _Permuted(Function):
    """Row r of the output is row index[r]; `inverse` undoes it, also for the gradient."""

    @staticmethod
    def forward(ctx: Any, y_PD: Tensor, index_P: Tensor, inverse_P: Tensor) -> Tensor:
        ctx.save_for_backward(inverse_P)
        return y_PD.index_select(0, index_P)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_PD: Tensor) -> tuple[Tensor, None, None]:
        (inverse_P,) = ctx.saved_tensors
        return grad_PD.index_select(0, inverse_P), None, None
