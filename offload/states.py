"""fp32 masters and moments of one subgroup, wherever they are at the moment."""

from dataclasses import dataclass

from torch import Tensor

from offload.subgroups import Segment, Subgroup
from offload.weights import Weights


@dataclass(frozen=True, kw_only=True)
class SubgroupState:
    """Flat fp32 tensors of a subgroup's size, on one device."""

    exp_avg: Tensor
    exp_avg_sq: Tensor
    master: Tensor | None
    """None where the weights themselves are fp32 in host memory."""

    def tensors(self) -> list[Tensor]:
        """All of them, in the order in which they are stored."""
        both = [self.exp_avg, self.exp_avg_sq]
        return both if self.master is None else [*both, self.master]

    def master_of(self, segment: Segment, weights: Weights) -> Tensor:
        """The fp32 weights that are updated."""
        if self.master is None:
            return weights.segment(segment)
        return self.master[segment.in_subgroup]


def masters_needed(subgroup: Subgroup, weights: Weights) -> bool:
    """Whether a subgroup keeps masters beside its weights."""
    return not all(weights.is_master(segment.parameter) for segment in subgroup.segments)


def fill_masters(subgroup: Subgroup, weights: Weights, state: SubgroupState) -> None:
    """Start the masters from the weights."""
    if state.master is None:
        return
    for segment in subgroup.segments:
        state.master[segment.in_subgroup].copy_(weights.segment(segment))
