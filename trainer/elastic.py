"""Experts change ranks between two steps, as measured loads ask for it.

E experts, L mixture layers.

Guarantees, each asserted in tests/trainer/test_elastic.py:
- losses go on as if nothing had moved: bitwise where experts change places, within rounding where
  they are lent;
- weights, moments and the buffer that says where experts are move together, so that a checkpoint
  is the same run wherever experts are.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from parallel.experts.dispatch import ExpertDispatch
from parallel.experts.moving import move_experts
from parallel.experts.placement import Placement, rebalance
from trainer.model.experts import Experts
from trainer.optim import Optimizer, moment_name
from trainer.weights import Weights


class ElasticExperts:
    """Adds up loads over steps, and lets experts follow them when asked.

    Layers whose experts are not spread over ranks are left alone. Loans are not saved: a resumed
    run begins without, and comes to them again.
    """

    def __init__(
        self,
        weights: Weights,
        optimizer: Optimizer,
        *,
        expert_groups: int,
        loan_rows: float,
        min_gain: float = 0.05,
    ) -> None:
        """`expert_groups` of ranks share the loads that are observed. `loan_rows` and `min_gain`
        are those of `parallel.experts.placement.rebalance`."""
        self._weights = weights
        self._optimizer = optimizer
        self._expert_groups = expert_groups
        self._loan_rows = loan_rows
        self._min_gain = min_gain
        self._load_LE = torch.zeros(0, 0)
        self._steps = 0
        self._layers = _spread_layers(weights)
        self._loans: dict[str, tuple[tuple[int, int], ...]] = {}

    def observe(self, expert_load: Tensor) -> None:
        """Count one step's load [L, E] of the whole model, summed over all ranks."""
        self._load_LE = expert_load.clone() if self._steps == 0 else self._load_LE + expert_load
        self._steps += 1

    def rearrange(self) -> int:
        """Move and lend experts as the loads since the last call ask for; how many changed ranks.

        All ranks call it alike, after an update whose gradients are not needed any more.
        """
        if not self._steps:
            return 0
        rows_LE = (self._load_LE / (self._steps * self._expert_groups)).tolist()
        self._steps = 0
        mixtures = self._weights.architecture.mixture_layers
        chosen = {}
        for name, (experts, _) in self._layers.items():
            rows_E = rows_LE[mixtures.index(_layer_number(name))][: experts.num_experts]
            chosen[name] = rebalance(
                rows_E, self.placement(name), loan_rows=self._loan_rows, min_gain=self._min_gain
            )
        return self.place(chosen)

    def placement(self, name: str) -> Placement:
        """Where the experts of a layer, such as "layers.3.mlp.experts", are now."""
        experts, dispatch = self._layers[name]
        slots = tuple(experts.expert_slot.tolist())
        return Placement(slots, dispatch.ranks, self._loans.get(name, ()))

    def place(self, placements: Mapping[str, Placement]) -> int:
        """Move and lend the experts of these layers; how many changed ranks in each group.

        All ranks call it alike, as `rearrange`.
        """
        moments = self._optimizer.moments()
        moved = 0
        for name, after in placements.items():
            experts, dispatch = self._layers[name]
            before = self.placement(name)
            move_experts(
                self._states(name, moments),
                before=before,
                after=after,
                group=dispatch.group,
                ledger=dispatch.ledger,
            )
            experts.expert_slot.copy_(experts.expert_slot.new_tensor(after.expert_slot))
            dispatch.lend(after)
            self._loans[name] = after.loans
            slots = zip(before.expert_slot, after.expert_slot, strict=True)
            moved += sum(before.owner(old) != after.owner(new) for old, new in slots)
        self._optimizer.restored(moments, self._optimizer.updates)
        self._weights.publish()
        return moved

    def _states(self, name: str, moments: Mapping[str, Tensor]) -> list[Tensor]:
        parameters = {
            n: p.detach() for n, p in self._weights.named_parameters() if n.startswith(f"{name}.")
        }
        return [
            *parameters.values(),
            *(
                moments[moment_name(moment, n)]
                for moment in self._optimizer.moment_names
                for n in parameters
            ),
        ]


def _spread_layers(weights: Weights) -> dict[str, tuple[Experts, ExpertDispatch]]:
    return {
        name: (module, module.exchange)
        for name, module in weights.model.named_modules()
        if isinstance(module, Experts) and isinstance(module.exchange, ExpertDispatch)
    }


def _layer_number(name: str) -> int:
    return int(name.split(".")[1])
