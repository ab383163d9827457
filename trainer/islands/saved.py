"""What islands add to a checkpoint, and how any number of islands goes on from it.

Under the names that every run uses (`model.…`) a checkpoint of several islands has the global
parameters, so that it can be exported, and gone on from, like any other. Beside them are
`outer.momentum.…`, what an exchange under way will bring (`outer.next_….…`), and, under `island0/`,
`island1/` and so on, what each island has of its own: weights, moments, buffers, what its replicas
had not sent yet, the number of updates and the loss of the probe.

Guarantees, each asserted in tests/trainer/islands/test_saved.py:
- what is read back is the outer state that was written, bitwise, an exchange under way included;
- the same islands, or some of them, go on where each was; others start from the global parameters
  and the moments of the first island;
- no name of a checkpoint is passed over that is not another island's, the outer state's or what
  replicas had not sent, which is read apart.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import Parameter

from comms.outer.saved import COUNTS, FLIGHT
from comms.outer.shards import flat_of, views_of
from trainer.offloaded import host_mesh, host_zeros_like
from trainer.replica_state import PREFIX

Kind = Literal["alone", "same", "spread", "gathered"]
"""How a checkpoint's islands meet those of the run: there are none on either side; those of the run
are among the checkpoint's; a run without becomes several; any other change."""

_OWN_UNSENT = re.compile(rf"island\d+/{re.escape(PREFIX)}")
_STORED = {
    "global": "model",
    "momentum": "outer.momentum",
    "next_global": "outer.next_global",
    "next_momentum": "outer.next_momentum",
}
_KEPT = {**_STORED, "global": "outer.global"}
"""In snapshots, of which each has one island's own parameters under `model.…`."""

SENT = "outer.sent."
"""Before the names of what was under way at a snapshot."""


def prefix_of(island: int) -> str:
    """What stands before the names of an island's own tensors."""
    return f"island{island}/"


def kind_of(stored: Collection[int], now: Collection[int]) -> Kind:
    """How the islands of a checkpoint, by their numbers, meet those of a run; a run that never had
    several has none."""
    if not stored:
        return "spread" if now else "alone"
    return "same" if now and set(now) <= set(stored) else "gathered"


def own_prefix(kind: Kind, island: int) -> str:
    """What stands before the names of the moments that this rank goes on with, and of what replicas
    had not sent. They are those of `island`."""
    return prefix_of(island) if kind in ("same", "gathered") else ""


def own_name(name: str, kind: Kind, island: int) -> str:
    """Under which name a checkpoint has this rank's tensor `name`."""
    if kind == "gathered" and not name.startswith("optim."):
        return name
    return own_prefix(kind, island) + name


def passed_over(kind: Kind, left: Collection[int] = ()) -> Callable[[str], bool]:
    """Which names of a checkpoint nobody need ask for: what replicas had not sent; buffers of the
    global model, as each island has its own; or what belongs to other islands, such as those that
    `left`. A tensor of another model is still found out: an island has it too.
    """
    if kind == "same":
        # Islands of the checkpoint that do not go on are passed over too.
        return lambda name: (
            name.startswith(("model.", *map(prefix_of, left)))
            or _OWN_UNSENT.match(name) is not None
        )
    if kind == "gathered":
        return lambda name: name.startswith(("island", "outer."))
    return lambda name: name.startswith(PREFIX)


def outer_tensors(
    state: Mapping[str, Tensor], parameters: Mapping[str, Tensor], *, kept: bool = False
) -> dict[str, Tensor]:
    """The tensors of an outer state by their stored names, or those they are `kept` under in a
    snapshot, cut as the parameters are. Nothing is copied."""
    stored, found = _KEPT if kept else _STORED, {}
    for key, part in state.items():
        if key not in (COUNTS, FLIGHT):
            name, _, kind = key.rpartition("/")
            found[f"{stored[kind]}.{name}"] = _cut_like(parameters[name], part)
    return found


def sent_tensors(gradient: Tensor, fragment: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The flat outer gradient of a fragment by the names it is kept under. Nothing is copied."""
    parts = views_of(gradient, [_part(parameter) for parameter in fragment.values()])
    return {
        SENT + name: _cut_like(parameter, part)
        for (name, parameter), part in zip(fragment.items(), parts, strict=True)
    }


@dataclass(frozen=True, kw_only=True)
class OuterSlots:
    """Room for an outer state, to be filled from a checkpoint."""

    keys: Mapping[str, str]
    """Stored name to the name in the state."""

    tensors: Mapping[str, Tensor]
    """By stored name."""

    def state(self, counts: Sequence[int], flight: Sequence[int] | None) -> dict[str, Tensor]:
        """The outer state, once the tensors are filled."""
        found = {self.keys[stored]: _part(tensor) for stored, tensor in self.tensors.items()}
        found[COUNTS] = torch.tensor(counts, dtype=torch.int64)
        if flight is not None:
            found[FLIGHT] = torch.tensor(flight, dtype=torch.int64)
        return found


def outer_slots(
    parameters: Mapping[str, Parameter], flying: Collection[str], *, kept: bool = False
) -> OuterSlots:
    """Room for the outer state of these parameters, of which `flying` were under way."""
    keys, tensors = {}, {}
    for name, parameter in parameters.items():
        for kind, stored in (_KEPT if kept else _STORED).items():
            if name in flying or not kind.startswith("next_"):
                keys[f"{stored}.{name}"] = f"{name}/{kind}"
                tensors[f"{stored}.{name}"] = host_zeros_like(parameter)
    return OuterSlots(keys=keys, tensors=tensors)


def zeros_for(parameters: Mapping[str, Parameter], prefix: str) -> dict[str, Tensor]:
    """Room in host memory for one number of each entry of the parameters."""
    return {prefix + name: host_zeros_like(parameter) for name, parameter in parameters.items()}


def flat_part(tensors: Mapping[str, Tensor]) -> Tensor:
    """This rank's parts, one after another, as a fragment has them."""
    return flat_of([_part(tensor) for tensor in tensors.values()])


def fresh_state(parameters: Mapping[str, Tensor], counts: Sequence[int]) -> dict[str, Tensor]:
    """The outer state of islands that all begin from these parameters."""
    found = {COUNTS: torch.tensor(counts, dtype=torch.int64)}
    for name, parameter in parameters.items():
        part = _part(parameter).float().cpu()
        found |= {f"{name}/global": part, f"{name}/momentum": torch.zeros_like(part)}
    return found


def _part(tensor: Tensor) -> Tensor:
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor.detach()


def _cut_like(parameter: Tensor, part: Tensor) -> Tensor:
    if not isinstance(parameter, DTensor):
        return part
    mesh = parameter.device_mesh
    return DTensor.from_local(
        part,
        host_mesh(mesh) if part.device.type == "cpu" else mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
