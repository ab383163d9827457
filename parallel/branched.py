"""Causal attention over documents that begin alike, of which the common beginning is there once.

Answers to one question share its tokens. Everything that treats tokens alone (projections, norms,
feed-forward layers) is computed once for them, and only attention is given each document whole.

    attend = branched(packed_attention, rows_E, T)
    attend(q_THd, k_TKd, v_TKd, document_ends=ends_of_the_whole_documents, window=None)

T rows, E places of all documents one after the other, H query heads, K key and value heads, d head
width.

Guarantees, each asserted in tests/parallel/test_branched.py:
- what a row gets, and gradients, are those of the documents written out, within rounding;
- gradients are the same every time, bitwise.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from parallel.attention import AttentionFn


def branched(attend: AttentionFn, rows_E: Tensor, rows: int) -> AttentionFn:
    """`attend` for tensors of that many rows; place e of the documents is row `rows_E[e]`, int64.

    Every row is at some place, and at all places of one row the documents are the same up to it.
    """
    order_E = rows_E.argsort(stable=True)
    starts_T = torch.searchsorted(rows_E[order_E], torch.arange(rows, device=rows_E.device))
    first_T = order_E[starts_T]

    def attend_whole(
        q_THd: Tensor,
        k_TKd: Tensor,
        v_TKd: Tensor,
        *,
        document_ends: tuple[int, ...],
        window: int | None,
    ) -> Tensor:
        q, k, v = (_AtPlaces.apply(x, rows_E, order_E, starts_T) for x in (q_THd, k_TKd, v_TKd))
        mixed = attend(q, k, v, document_ends=document_ends, window=window)
        return mixed.index_select(0, first_T)

    return attend_whole


class _AtPlaces(Function):
    """x_T[rows_E]. The gradient is gathered and summed per row in a fixed order; the usual
    scatter-add is not deterministic on CUDA."""

    @staticmethod
    def forward(ctx: Any, x_T: Tensor, rows_E: Tensor, order_E: Tensor, starts_T: Tensor) -> Tensor:
        ctx.order_E, ctx.starts_T = order_E, starts_T
        return x_T.index_select(0, rows_E)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_E: Tensor) -> tuple[Tensor, None, None, None]:
        grad_T = F.embedding_bag(ctx.order_E, grad_E.flatten(1), ctx.starts_T, mode="sum")
        return grad_T.unflatten(1, grad_E.shape[1:]), None, None, None
