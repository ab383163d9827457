"""Optimizer state in the form of `torch.optim.AdamW`, from subgroups and back.

An entry has `step`, `exp_avg` and `exp_avg_sq`; where weights are not fp32 it has `master` too,
which AdamW ignores. A `master` that does not round to the present weight is outdated (somebody
loaded other weights), and the weight wins.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from offload.states import SubgroupState, fill_masters
from offload.subgroups import Segment, Subgroup
from offload.weights import Weights, flat, local

ADAMW_OPTIONS = {
    "amsgrad": False,
    "maximize": False,
    "foreach": None,
    "capturable": False,
    "differentiable": False,
    "fused": None,
    "decoupled_weight_decay": True,
}
"""What else AdamW's groups hold; here so that its `load_state_dict` finds it."""


MOMENTS = ("exp_avg", "exp_avg_sq")


def export_states(
    weights: Weights,
    subgroups: Sequence[Subgroup],
    state_of: Callable[[Subgroup], SubgroupState],
) -> list[dict[str, Tensor]]:
    """Moments, and masters where there are any, of each parameter; copies in its shape.

    DTensor parameters get DTensors of the same placement. No rank needs another.
    """
    found: list[dict[str, Tensor]] = [{} for _ in weights.parameters]
    for subgroup in subgroups:
        state = state_of(subgroup)
        for segment in subgroup.segments:
            own = not weights.is_master(segment.parameter)
            for name, source in _named(state, with_master=own):
                entry = found[segment.parameter]
                if name not in entry:
                    entry[name] = torch.empty(weights.size(segment.parameter))
                entry[name][segment.in_parameter] = source[segment.in_subgroup]
    for parameter, entry in zip(weights.parameters, found, strict=True):
        for name in MOMENTS:
            entry.setdefault(name, torch.empty(0))
        entry.update({name: _like(parameter, tensor) for name, tensor in entry.items()})
    return found


def import_state(
    weights: Weights,
    subgroup: Subgroup,
    state: SubgroupState,
    entries: Sequence[Mapping[str, Any] | None],
) -> None:
    """Fill a zeroed `state` from the entries of its parameters; None leaves zeros.

    Raises:
        ValueError: An entry has another number of elements than this rank's part.
    """
    fill_masters(subgroup, weights, state)
    for segment in subgroup.segments:
        entry = entries[segment.parameter]
        if not entry:
            continue
        for name, target in _named(state, with_master=False):
            source = _checked(entry[name], weights, segment, name)
            target[segment.in_subgroup].copy_(source)
        if state.master is not None and "master" in entry:
            source = _checked(entry["master"], weights, segment, "master")
            _take_master(state.master[segment.in_subgroup], source, weights.segment(segment))


def refuse_variants(groups: Sequence[Mapping[str, Any]]) -> None:
    """Raise ValueError for AdamW options that change the arithmetic."""
    for group in groups:
        for option in ("amsgrad", "maximize", "differentiable"):
            if group.get(option):
                raise ValueError(
                    f"{option}=True is not offered by InterleavedAdamW; "
                    "save the state from an AdamW without it"
                )


def require_same_groups(
    own: Sequence[Mapping[str, Any]], saved: Sequence[Mapping[str, Any]]
) -> None:
    """Raise ValueError if parameter groups differ in number or in length."""
    ours, theirs = ([len(group["params"]) for group in groups] for groups in (own, saved))
    if ours != theirs:
        raise ValueError(
            f"the state has parameter groups of {theirs} parameters, this optimizer of {ours}; "
            "build it over the same groups"
        )


def _named(state: SubgroupState, *, with_master: bool) -> list[tuple[str, Tensor]]:
    named = [("exp_avg", state.exp_avg), ("exp_avg_sq", state.exp_avg_sq)]
    if with_master and state.master is not None:
        named.append(("master", state.master))
    return named


def _take_master(target: Tensor, saved: Tensor, weight: Tensor) -> None:
    saved = saved.to(device=target.device, dtype=torch.float32)
    same = saved.to(weight.dtype) == weight.to(target.device)
    target.copy_(torch.where(same, saved, target))


def _checked(value: Tensor, weights: Weights, segment: Segment, name: str) -> Tensor:
    size = weights.size(segment.parameter)
    if local(value).numel() != size:
        raise ValueError(
            f"{name} of parameter {segment.parameter} has {local(value).numel()} elements on this "
            f"rank, the parameter has {size}; load a state of the same model and sharding"
        )
    return flat(value)[segment.in_parameter]


def _like(parameter: nn.Parameter, tensor: Tensor) -> Tensor:
    """`tensor` in the parameter's local shape, distributed as the parameter is."""
    shaped = tensor.view(local(parameter).shape)
    if not isinstance(parameter, DTensor):
        return shaped
    return DTensor.from_local(
        shaped,
        _host_mesh(parameter.device_mesh),
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def _host_mesh(mesh: DeviceMesh) -> DeviceMesh:
    """The same ranks in the same places, so that a copy stays in host memory; sends nothing."""
    if mesh.device_type == "cpu":
        return mesh
    return DeviceMesh("cpu", mesh.mesh, mesh_dim_names=mesh.mesh_dim_names, _init_backend=False)
