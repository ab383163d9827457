"""Mixture-of-experts feed-forward: nothing is dropped unless a capacity says so.

T tokens, D model width, E experts, k experts per token, S packed sequences, F width of the shared
experts, V slots that hold experts.

Variants, each a key of `MoeConfig`: residual (routed and shared experts weighed per token) and
pyramid (more experts higher up) of DeepSpeed-MoE, arXiv 2201.05596; the narrower width in which
tokens travel of BigMac, arXiv 2502.16927; bounded capacity.

Guarantees, each asserted in tests/trainer/model/test_moe.py:
- the selection bias decides which experts are chosen and never how much they weigh;
- the auxiliary loss of a batch is the sum over its sequences, so any split of the sequences over
  ranks and rounds sums to the same number;
- perfect balance gives an auxiliary loss of exactly its weight, per target;
- padding is in no statistic;
- dropped pairs are counted, add nothing and have no gradient;
- experts may lie in any order without a difference;
- experts that are given are visited, weighed by this router's scores; what it would choose itself
  changes nothing.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parallel.experts.capacity import within_capacity
from trainer.model.config import MoeConfig
from trainer.model.experts import Experts
from trainer.model.packing import Packing, SequenceWeights
from trainer.model.rows import SortedRows
from trainer.model.swiglu import SwiGlu


class MoeStats(NamedTuple):
    """What a layer's router adds to the loss, and what it did."""

    aux: Tensor
    """fp32 scalar: weighted router losses, each sequence's times its number of targets."""

    load_E: Tensor
    """fp32: assignments of real tokens to each expert, detached; zero beyond the layer's experts
    where other layers have more."""

    dropped: Tensor
    """fp32 scalar: of these assignments, those beyond the experts' capacity."""


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

    def __init__(self, hidden_size: int, moe: MoeConfig, num_experts: int) -> None:
        super().__init__()
        self.moe = moe
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size))
        self.expert_bias: Tensor
        self.register_buffer("expert_bias", torch.zeros(num_experts, dtype=torch.float32))

    def forward(self, x_TD: Tensor, experts_Tk: Tensor | None = None) -> Routing:
        """Choose k experts per token, or weigh those that are given, where they are not -1."""
        with torch.autocast(x_TD.device.type, enabled=False):
            logits_TE = F.linear(x_TD.float(), self.weight.float())
        if self.moe.scoring == "softmax":
            scores_TE = shares_TE = logits_TE.softmax(dim=-1)
        else:
            scores_TE = logits_TE.sigmoid()
            shares_TE = scores_TE / (scores_TE.sum(dim=-1, keepdim=True) + 1e-20)
        chosen_by_TE = (scores_TE + self.expert_bias).detach()
        chosen_Tk = chosen_by_TE.topk(self.moe.top_k, dim=-1).indices
        if experts_Tk is None:
            experts_Tk = chosen_Tk
        else:
            experts_Tk = torch.where(experts_Tk >= 0, experts_Tk, chosen_Tk)
        weights_Tk = scores_TE.gather(1, experts_Tk)
        if self.moe.normalize_top_k:
            weights_Tk = weights_Tk / (weights_Tk.sum(dim=-1, keepdim=True) + 1e-20)
        return Routing(experts_Tk, weights_Tk * self.moe.routed_scale, shares_TE, logits_TE)


class MoeFeedForward(nn.Module):
    """Router, routed experts, and shared experts that every token visits."""

    def __init__(self, hidden_size: int, moe: MoeConfig, num_experts: int = 0) -> None:
        """`num_experts` of this layer; 0 takes the configuration's."""
        super().__init__()
        self.moe = moe
        experts = num_experts or moe.num_experts
        row_size = moe.dispatch_size or hidden_size
        shared_size = moe.shared_intermediate_size
        self.gate = Router(hidden_size, moe, experts)
        self.experts = Experts(experts, row_size, moe.expert_intermediate_size)
        self.shared_experts = SwiGlu(hidden_size, shared_size) if shared_size else None
        narrow = moe.dispatch_size > 0
        self.descend = nn.Linear(hidden_size, row_size, bias=False) if narrow else None
        self.ascend = nn.Linear(row_size, hidden_size, bias=False) if narrow else None
        self.coefficients = nn.Linear(hidden_size, 2) if moe.residual else None

    def forward(self, x_TD: Tensor, packing: Packing) -> tuple[Tensor, MoeStats | None]:
        """[T, D] to [T, D], and statistics if `packing` knows the sequences.

        Padding is routed like any token, so that every rank uses every parameter; only a bounded
        capacity leaves it out. What does not need the routed experts is computed while rows are
        under way to them and back.
        """
        shared = self.shared_experts
        routing = self.gate(x_TD, packing.experts_Tk)
        assigned_TE = torch.zeros_like(routing.shares_TE).scatter_(1, routing.experts_Tk, 1.0)
        kept_Tk = self._kept(routing.experts_Tk, packing.sequences)
        rows = self._sorted_rows(routing.experts_Tk, assigned_TE, kept_Tk)
        trip = self.experts.exchange.open(rows.counts_V)
        trip.send(rows.copies(x_TD if self.descend is None else self.descend(x_TD)))
        inner_TF = None if shared is None else shared.inner(x_TD)
        trip.send_back(self.experts(*trip.receive()))
        shared_TD = None if shared is None else shared.down_proj(inner_TF)
        stats = self._stats(routing, assigned_TE, kept_Tk, packing.sequences)
        y_TD = rows.combined(trip.receive_back(), routing.weights_Tk)
        y_TD = y_TD if self.ascend is None else self.ascend(y_TD)
        return self._with_shared(x_TD, y_TD, shared_TD), stats

    def _kept(self, experts_Tk: Tensor, sequences: SequenceWeights | None) -> Tensor | None:
        """Which pairs fit the experts' capacity; None where it is not bounded. It is not in
        generation: there a dropped token would be a wrong answer."""
        if self.moe.capacity_factor is None or sequences is None:
            return None
        return within_capacity(
            experts_Tk,
            sequences.mean_ST > 0,
            num_experts=self.experts.num_experts,
            factor=self.moe.capacity_factor,
        )

    def _sorted_rows(
        self, experts_Tk: Tensor, assigned_TE: Tensor, kept_Tk: Tensor | None
    ) -> SortedRows:
        if kept_Tk is not None:
            assigned_TE = torch.zeros_like(assigned_TE).scatter_(1, experts_Tk, kept_Tk.float())
        counts_E = assigned_TE.sum(dim=0).long()
        slot_E = self.experts.expert_slot
        counts_V = torch.empty_like(counts_E).scatter_(0, slot_E, counts_E)
        return SortedRows(slot_E[experts_Tk], counts_V, kept_Tk)

    def _stats(
        self,
        routing: Routing,
        assigned_TE: Tensor,
        kept_Tk: Tensor | None,
        sequences: SequenceWeights | None,
    ) -> MoeStats | None:
        if sequences is None:
            return None
        stats = moe_stats(routing, assigned_TE, sequences, self.moe)
        # Layers of a pyramid have fewer experts; rows of all layers are stacked.
        padding = self.moe.num_experts - self.experts.num_experts
        stats = stats._replace(load_E=F.pad(stats.load_E, (0, padding))) if padding else stats
        if kept_Tk is None:
            return stats
        dropped_T = (~kept_Tk).float().sum(dim=1)
        return stats._replace(dropped=(dropped_T * sequences.real_T).sum())

    def _with_shared(self, x_TD: Tensor, y_TD: Tensor, shared_TD: Tensor | None) -> Tensor:
        if shared_TD is None:
            return y_TD
        if self.coefficients is None:
            return y_TD + shared_TD
        share_T2 = self.coefficients(x_TD).softmax(dim=-1, dtype=torch.float32).to(y_TD.dtype)
        return share_T2[:, :1] * y_TD + share_T2[:, 1:] * shared_TD


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
        balance_S = assigned_TE.shape[1] * (fraction_SE * share_SE).sum(dim=1)
        loss_S = moe.aux_loss_weight * balance_S
        if moe.z_loss_weight:
            squares_T = routing.logits_TE.logsumexp(dim=-1).square()
            loss_S = loss_S + moe.z_loss_weight * (sequences.mean_ST @ squares_T)
        aux = (loss_S * sequences.targets_S).sum()
        return MoeStats(aux, sequences.real_T @ assigned_TE, aux.new_zeros(()))
