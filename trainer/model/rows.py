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
        self._top_k = slots_Tk.shape[1]
        slots_P = slots_Tk.flatten()
        if kept_Tk is not None:
            slots_P = slots_P.masked_fill(~kept_Tk.flatten(), counts_V.numel())
        self._order_P = slots_P.argsort(stable=True)
        self._place_P = torch.empty_like(self._order_P)
        self._place_P[self._order_P] = torch.arange(slots_P.numel(), device=slots_P.device)
        # Dropped pairs are last in the order.
        self._num_rows = None if kept_Tk is None else _count(kept_Tk)

    def copies(self, x_TD: Tensor) -> Tensor:
        """Each row's token: [R, D]."""
        x_PD = _SortedCopies.apply(x_TD, self._order_P, self._place_P, self._top_k)
        return x_PD if self._num_rows is None else x_PD[: self._num_rows]

    def combined(self, y_RD: Tensor, weights_Tk: Tensor) -> Tensor:
        """Each token's rows, weighted and added: [T, D]. Dropped pairs add nothing."""
        if self._num_rows is not None:
            y_RD = F.pad(y_RD, (0, 0, 0, self._order_P.numel() - self._num_rows))
        return _WeightedSum.apply(y_RD, weights_Tk.to(y_RD.dtype), self._order_P, self._place_P)


# Outside compiled graphs: the number depends on the data.
@torch.compiler.disable
def _count(kept_Tk: Tensor) -> int:
    return int(kept_Tk.sum().item())


def _gathered_sum(rows_PD: Tensor, place_P: Tensor, weights_Tk: Tensor) -> Tensor:
    """Sum over j of weights[t, j] rows[place[t k + j]]: [T, D], the [T, k, D] never in memory."""
    place_Tk = place_P.view(weights_Tk.shape)
    return F.embedding_bag(place_Tk, rows_PD, mode="sum", per_sample_weights=weights_Tk)


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
        ones_Tk = grad_PD.new_ones(place_P.numel() // ctx.top_k, ctx.top_k)
        return _gathered_sum(grad_PD, place_P, ones_Tk), None, None, None


class _WeightedSum(Function):
    """Token t of the output is the sum over its pairs of weight times row place[pair]."""

    @staticmethod
    def forward(
        ctx: Any, y_PD: Tensor, weights_Tk: Tensor, order_P: Tensor, place_P: Tensor
    ) -> Tensor:
        ctx.save_for_backward(y_PD, weights_Tk, order_P, place_P)
        return _gathered_sum(y_PD, place_P, weights_Tk)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor, Tensor, None, None]:
        y_PD, weights_Tk, order_P, place_P = ctx.saved_tensors
        grad_PD = grad_TD.index_select(0, order_P // weights_Tk.shape[1])
        grad_weights_P = torch.linalg.vecdot(y_PD, grad_PD)
        grad_PD *= weights_Tk.flatten()[order_P].unsqueeze(1)
        return grad_PD, grad_weights_P[place_P].view_as(weights_Tk), None, None
