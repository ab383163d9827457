"""Experts change ranks between two steps, as measured loads ask for it.

E experts, v slots of this rank.

Guarantees, each asserted in tests/trainer/test_elastic.py:
- losses go on as if nothing had moved: bitwise where experts change places, within rounding where
  they are lent;
- weights, moments and the buffer that says where experts are move together, so that a checkpoint
  is the same run wherever experts are.
"""

from collections.abc import Mapping, Sequence

import torch.distributed as dist
from torch import Tensor, nn

from comms.ledger import Ledger
from parallel.experts.dispatch import ExpertDispatch
from parallel.experts.moving import move_experts
from parallel.experts.placement import Placement, rebalance
from trainer.model.experts import Experts


def layers_with_experts(model: nn.Module) -> dict[str, Experts]:
    """The stacked experts of a model, or of the part of it on this rank, by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, Experts)}


def placement_of(experts: Experts, ranks: int) -> Placement:
    """Where a layer's experts are now, loans left out."""
    return Placement(tuple(experts.expert_slot.tolist()), ranks)


def choose_placements(
    layers: Mapping[str, Experts],
    loads: Mapping[str, Sequence[float]],
    *,
    ranks: int,
    loan_rows: float,
    min_gain: float = 0.05,
) -> dict[str, Placement]:
    """Per layer, what `rebalance` says to the rows per expert of a typical step.

    All ranks of an expert group must see the same loads: they are summed over all ranks.
    """
    return {
        name: rebalance(
            loads[name], placement_of(experts, ranks), loan_rows=loan_rows, min_gain=min_gain
        )
        for name, experts in layers.items()
    }


def place_experts(
    layers: Mapping[str, Experts],
    placements: Mapping[str, Placement],
    *,
    parameters: Mapping[str, Tensor],
    moments: Mapping[str, Mapping[str, Tensor]],
    group: dist.ProcessGroup,
    ledger: Ledger,
) -> int:
    """Move and lend experts as `placements` say; how many experts changed ranks in this group.

    `parameters` are what the optimizer updates, by the model's names, and `moments` its states: for
    every kind of moment the same names. All of them are written in place; an optimizer that keeps
    its states elsewhere is told afterwards, and weights that are copies of the parameters are
    published. All ranks call it alike, between two steps, gradients not needed any more.
    """
    moved = 0
    for name, experts in layers.items():
        after, before = placements[name], placement_of(experts, group.size())
        names = [f"{name}.{stacked}" for stacked, _ in experts.named_parameters()]
        tensors = [states[n] for states in (parameters, *moments.values()) for n in names]
        move_experts(tensors, before=before, after=after, group=group, ledger=ledger)
        experts.expert_slot.copy_(experts.expert_slot.new_tensor(after.expert_slot))
        if isinstance(experts.exchange, ExpertDispatch):
            experts.exchange.lend(after)
        slots = zip(before.expert_slot, after.expert_slot, strict=True)
        moved += sum(before.owner(old) != after.owner(new) for old, new in slots)
    return moved
