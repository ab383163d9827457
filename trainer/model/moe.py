"""Mixture-of-experts feed-forward without dropped tokens.

T tokens, D model width, E experts, k experts per token, R = T k token and expert pairs,
S packed sequences.

Guarantees, each asserted in tests/trainer/model/test_moe.py:
- the selection bias decides which experts are chosen and never how much they weigh;
- the auxiliary loss of a batch is the sum over its sequences, so any split of the sequences over
  ranks and rounds sums to the same number;
- perfect balance gives an auxiliary loss of exactly its weight, per target;
- padding is in no statistic.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from trainer.model.config import MoeConfig
from trainer.model.experts import Experts
from trainer.model.packing import Packing, SequenceWeights
from trainer.model.swiglu import SwiGlu


class MoeStats(NamedTuple):
    """What a layer's router adds to the loss, and what it did."""

    aux: Tensor
    """fp32 scalar: weighted router losses, each sequence's times its number of targets."""

    load_E: Tensor
    """fp32: assignments of real tokens to each expert, detached."""


class Routing(NamedTuple):
    """The router's decision."""

    experts_Tk: Tensor
    weights_Tk: Tensor
    """fp32."""

    shares_TE: Tensor
    """fp32: scores that sum to one per token."""

    logits_TE: Tensor
    """fp32."""


class Router(nn.Module):
    """Scores experts for each token, in fp32."""

    def __init__(self, hidden_size: int, moe: MoeConfig) -> None:
        super().__init__()
        self.moe = moe
        self.weight = nn.Parameter(torch.empty(moe.num_experts, hidden_size))
        self.expert_bias: Tensor
        self.register_buffer("expert_bias", torch.zeros(moe.num_experts, dtype=torch.float32))

    def forward(self, x_TD: Tensor) -> Routing:
        """Choose k experts per token."""
        with torch.autocast(x_TD.device.type, enabled=False):
            logits_TE = F.linear(x_TD.float(), self.weight.float())
        if self.moe.scoring == "softmax":
            scores_TE = shares_TE = logits_TE.softmax(dim=-1)
        else:
            scores_TE = logits_TE.sigmoid()
            shares_TE = scores_TE / (scores_TE.sum(dim=-1, keepdim=True) + 1e-20)
        chosen_by_TE = (scores_TE + self.expert_bias).detach()
        experts_Tk = chosen_by_TE.topk(self.moe.top_k, dim=-1).indices
        weights_Tk = scores_TE.gather(1, experts_Tk)
        if self.moe.normalize_top_k:
            weights_Tk = weights_Tk / (weights_Tk.sum(dim=-1, keepdim=True) + 1e-20)
        return Routing(experts_Tk, weights_Tk * self.moe.routed_scale, shares_TE, logits_TE)


class MoeFeedForward(nn.Module):
    """Router, routed experts, and shared experts that every token visits."""

    def __init__(self, hidden_size: int, moe: MoeConfig) -> None:
        super().__init__()
        self.moe = moe
        self.gate = Router(hidden_size, moe)
        self.experts = Experts(moe.num_experts, hidden_size, moe.expert_intermediate_size)
        self.shared_experts = (
            SwiGlu(hidden_size, moe.shared_intermediate_size)
            if moe.shared_intermediate_size
            else None
        )

    def forward(self, x_TD: Tensor, packing: Packing) -> tuple[Tensor, MoeStats | None]:
        """[T, D] to [T, D], and statistics if `packing` knows the sequences.

        Padding is routed like any token, so that every rank uses every parameter.
        """
        routing = self.gate(x_TD)
        assigned_TE = torch.zeros_like(routing.shares_TE).scatter_(1, routing.experts_Tk, 1.0)
        y_TD = self._routed(x_TD, routing, assigned_TE.sum(dim=0).long())
        if self.shared_experts is not None:
            y_TD = y_TD + self.shared_experts(x_TD)
        if packing.sequences is None:
            return y_TD, None
        return y_TD, moe_stats(routing, assigned_TE, packing.sequences, self.moe)

    def _routed(self, x_TD: Tensor, routing: Routing, counts_E: Tensor) -> Tensor:
        order_R = routing.experts_Tk.flatten().argsort(stable=True)
        place_R = torch.empty_like(order_R)
        place_R[order_R] = torch.arange(order_R.numel(), device=order_R.device)
        x_RD = _SortedCopies.apply(x_TD, order_R, place_R, self.moe.top_k)
        y_RD = self.experts(x_RD, counts_E)
        y_TkD = _Permuted.apply(y_RD, place_R, order_R).unflatten(0, (-1, self.moe.top_k))
        return (y_TkD * routing.weights_Tk.to(y_TkD.dtype).unsqueeze(-1)).sum(dim=1)


def moe_stats(
    routing: Routing, assigned_TE: Tensor, sequences: SequenceWeights, moe: MoeConfig
) -> MoeStats:
    """Balance loss per sequence (arXiv 2412.19437, equations 17 to 20) and z-loss (arXiv
    2202.08906, equation 5), both times the sequence's targets; and the load.
    """
    with torch.autocast(assigned_TE.device.type, enabled=False):
        fraction_SE = (sequences.mean_ST @ assigned_TE) / moe.top_k
        if sequences.sum_over_group is not None:
            # Each rank's shares are a part of the sequence's; the fractions must be whole.
            fraction_SE = sequences.sum_over_group(fraction_SE)
        share_SE = sequences.mean_ST @ routing.shares_TE
        balance_S = moe.num_experts * (fraction_SE * share_SE).sum(dim=1)
        loss_S = moe.aux_loss_weight * balance_S
        if moe.z_loss_weight:
            squares_T = routing.logits_TE.logsumexp(dim=-1).square()
            loss_S = loss_S + moe.z_loss_weight * (sequences.mean_ST @ squares_T)
        aux = (loss_S * sequences.targets_S).sum()
        return MoeStats(aux, sequences.real_T @ assigned_TE)


class _SortedCopies(Function):
    """Row r of the output is token order[r] // k.

    The gradient is gathered and summed per token in a fixed order; the usual scatter-add is not
    deterministic on CUDA.
    """

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, order_R: Tensor, place_R: Tensor, top_k: int) -> Tensor:
        ctx.save_for_backward(place_R)
        ctx.top_k = top_k
        return x_TD.index_select(0, order_R // top_k)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RD: Tensor) -> tuple[Tensor, None, None, None]:
        (place_R,) = ctx.saved_tensors
        grad_TkD = grad_RD.index_select(0, place_R).unflatten(0, (-1, ctx.top_k))
        return grad_TkD.sum(dim=1), None, None, None


class _Permuted(Function):
    """Row r of the output is row index[r]; `inverse` undoes it, also for the gradient."""

    @staticmethod
    def forward(ctx: Any, y_RD: Tensor, index_R: Tensor, inverse_R: Tensor) -> Tensor:
        ctx.save_for_backward(inverse_R)
        return y_RD.index_select(0, index_R)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RD: Tensor) -> tuple[Tensor, None, None]:
        (inverse_R,) = ctx.saved_tensors
        return grad_RD.index_select(0, inverse_R), None, None
