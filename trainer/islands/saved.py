"""What islands add to a checkpoint, and how any number of islands goes on from it.

Under the names that every run uses (`model.…`) a checkpoint of several islands has the global
parameters, so that it can be exported, and gone on from, like any other. Beside them are
`outer.momentum.…`, what an exchange under way will bring (`outer.next_….…`), and, under `island0/`,
`island1/` and so on, what each island has of its own: weights, moments, buffers, what its replicas
had not sent yet, the number of updates and the loss of the probe.

Guarantees, each asserted in tests/trainer/islands/test_saved.py:
- what is read back is the outer state that was written, bitwise, an exchange under way included;
- the same number of islands goes on where each was; another number starts from the global
  parameters and the moments of the first island;
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
from trainer.offloaded import host_mesh, host_zeros_like
from trainer.replica_state import PREFIX

Kind = Literal["alone", "same", "spread", "gathered"]
"""How a checkpoint's islands meet those of the run: there are none on either side; as many on both;
a run without becomes several; any other change."""

_OWN_UNSENT = re.compile(rf"island\d+/{re.escape(PREFIX)}")
_STORED = {
    "global": "model",
    "momentum": "outer.momentum",
    "next_global": "outer.next_global",
    "next_momentum": "outer.next_momentum",
}


def prefix_of(island: int) -> str:
    """What stands before the names of an island's own tensors."""
    return f"island{island}/"


def kind_of(stored: int, now: int) -> Kind:
    """How `stored` islands of a checkpoint meet the `now` islands of a run."""
    if stored == now:
        return "alone" if now == 1 else "same"
    return "spread" if stored == 1 else "gathered"


def own_prefix(kind: Kind, island: int) -> str:
    """What stands before the names of the moments that this island goes on with, and of what its
    replicas had not sent."""
    if kind == "same":
        return prefix_of(island)
    return prefix_of(0) if kind == "gathered" else ""


def own_name(name: str, kind: Kind, island: int) -> str:
    """Under which name a checkpoint has this island's tensor `name`."""
    if kind == "gathered" and not name.startswith("optim."):
        return name
    return own_prefix(kind, island) + name


def passed_over(kind: Kind) -> Callable[[str], bool]:
    """Which names of a checkpoint nobody need ask for: what replicas had not sent; buffers of the
    global model, as each island has its own; or what belongs to other islands. A tensor of another
    model is still found out: an island has it too.
    """
    if kind == "same":
        return lambda name: name.startswith("model.") or _OWN_UNSENT.match(name) is not None
    if kind == "gathered":
        return lambda name: name.startswith(("island", "outer."))
    return lambda name: name.startswith(PREFIX)


def outer_tensors(
    state: Mapping[str, Tensor], parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors of an outer state by their stored names, cut as the parameters are. Nothing is
    copied."""
    found = {}
    for key, part in state.items():
        if key not in (COUNTS, FLIGHT):
            name, _, kind = key.rpartition("/")
            found[f"{_STORED[kind]}.{name}"] = _cut_like(parameters[name], part)
    return found


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


def outer_slots(parameters: Mapping[str, Parameter], flying: Collection[str]) -> OuterSlots:
    """Room for the outer state of these parameters, of which `flying` were under way."""
    keys, tensors = {}, {}
    for name, parameter in parameters.items():
        for kind, stored in _STORED.items():
            if name in flying or not kind.startswith("next_"):
                keys[f"{stored}.{name}"] = f"{name}/{kind}"
                tensors[f"{stored}.{name}"] = host_zeros_like(parameter)
    return OuterSlots(keys=keys, tensors=tensors)


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
    return DTensor.from_local(
        part,
        host_mesh(parameter.device_mesh),
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
