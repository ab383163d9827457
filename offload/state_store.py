"""All states of a rank, read and replaced wherever they are."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from offload.engine import Lanes
from offload.state_dict import export_states, import_state
from offload.states import SubgroupState
from offload.subgroups import Subgroup
from offload.weights import Weights


class StateStore:
    """Access to states between updates, one subgroup at a time."""

    def __init__(self, weights: Weights, subgroups: Sequence[Subgroup], lanes: Lanes) -> None:
        self._weights = weights
        self._subgroups = subgroups
        self._lanes = lanes

    def export(self) -> list[dict[str, Tensor]]:
        """AdamW's entries of all parameters, without their counters."""
        return export_states(self._weights, self._subgroups, self._newest)

    def replace(self, entries: Sequence[Mapping[str, Any] | None]) -> None:
        """Take over the entries of all parameters; None starts a parameter anew."""
        for subgroup in self._subgroups:
            self._replace(subgroup, entries)

    def settle(self) -> None:
        """Wait until nothing is on its way."""
        if self._lanes.disk is not None:
            self._lanes.disk.settle()
        if self._lanes.device is not None:
            for subgroup in self._subgroups:
                self._lanes.device.rest(subgroup)

    def _newest(self, subgroup: Subgroup) -> SubgroupState:
        if subgroup.index in self._lanes.host:
            if self._lanes.device is not None:
                self._lanes.device.rest(subgroup)
            return self._lanes.host[subgroup.index]
        assert self._lanes.disk is not None, "a subgroup is in memory or on disk"
        return self._lanes.disk.stored(subgroup)

    def _replace(self, subgroup: Subgroup, entries: Sequence[Mapping[str, Any] | None]) -> None:
        def fill(state: SubgroupState) -> None:
            import_state(self._weights, subgroup, state, entries)

        if subgroup.index not in self._lanes.host:
            assert self._lanes.disk is not None, "a subgroup is in memory or on disk"
            self._lanes.disk.replace(subgroup, fill)
            return
        state = self._newest(subgroup)
        for tensor in state.tensors():
            tensor.zero_()
        fill(state)
