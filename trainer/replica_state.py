"""What replicas have not sent yet, in checkpoints.

What has one entry per entry of a gradient is saved as a tensor of each parameter's form, once for
every replica: `comms.replica.<replica>.<kind>.<parameter>`. So it is loaded in any layout, and
another number of replicas shares out its sum. What is not of that form is saved as it is,
`comms.rank.<rank>/<key>/<kind>`, and loaded only where nothing has changed.

Guarantees, each asserted in tests/trainer/test_replica_state.py:
- in the same layout all of it is as it was, bitwise;
- in another one the sum over replicas of what was not sent, of momentum and of estimates is the
  same, and what all replicas held alike stays so;
- what cannot be kept is dropped, and said so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from comms.compression.exchange import FULL, STEPS
from comms.compression.flat import FlatGradient, Piece
from parallel.replicas import Replicas
from trainer.assembly import Assembly
from trainer.checkpoint.agreement import agree
from trainer.checkpoint.loading import fill
from trainer.checkpoint.manifest import read_manifest

PREFIX = "comms."
_COMMON = ("estimate_sum",)
"""Of what has one entry per entry of a gradient: what all replicas hold alike."""


def replica_tensors(assembly: Assembly, rank: int) -> dict[str, Tensor]:
    """This rank's state by name, as of the last settled step; live tensors and views of them."""
    replicas = assembly.replicas
    if replicas is None:
        return {}
    names = _names(assembly)
    replica = assembly.layout.coordinates(rank)["replica"]
    found: dict[str, Tensor] = {}
    for path, value in replicas.exchange.state_dict().items():
        key, kind = path.rsplit("/", 1)
        if kind == STEPS:
            continue
        if kind in FULL and not replicas.two_level:
            for piece in replicas.flats[key].pieces:
                name = _full_name(replica, kind, names[piece.parameter])
                found[name] = _as_parameter(value, piece)
        else:
            found[f"{PREFIX}rank.{rank}/{key}/{kind}"] = value
    return found


def describe_replicas(assembly: Assembly) -> dict[str, Any] | None:
    """What has to be the same for all of the state to be loaded as it is, and the committed steps;
    None where nothing is compressed. All ranks of a run describe it alike, but for stages."""
    replicas = assembly.replicas
    if replicas is None:
        return None
    state = replicas.exchange.state_dict()
    steps = [int(value) for path, value in state.items() if path.endswith(f"/{STEPS}")]
    return {
        "form": {
            "layout": asdict(assembly.layout),
            "two_level": replicas.two_level,
            "config": asdict(replicas.config),
            "sizes": {key: flat.numel for key, flat in replicas.flats.items()},
        },
        "steps": max(steps, default=0),
    }


def restore_replicas(
    assembly: Assembly,
    rank: int,
    path: Path,
    saved: Mapping[str, Any] | None,
    group: dist.ProcessGroup,
) -> list[str]:
    """Continue from the state in the checkpoint `path`, which described it as `saved`; what could
    not be kept, for people. All ranks call it."""
    replicas = assembly.replicas
    if saved is None or not saved["steps"]:
        # Nothing was left unsent by steps that sent everything.
        return []
    if replicas is None:
        return ["replicas do not compress any more: what they had not sent yet is lost"]
    own = describe_replicas(assembly)
    assert own is not None
    # Stages differ in keys and sizes; rank 0 described its own.
    form = {**saved["form"], "sizes": own["form"]["sizes"]}
    same = form == own["form"]
    if not same and (saved["form"]["two_level"] or replicas.two_level):
        return [
            "parts of gradients that ranks of one host had to send cannot be cut anew for another "
            "layout or method: what was not sent yet is lost"
        ]
    reader = _Reader(assembly, replicas, rank, path, saved, same=same)
    agree(group, f"reading compression state of {path.name}", reader.read)
    return reader.dropped


class _Reader:
    """Reads what one rank needs."""

    def __init__(
        self,
        assembly: Assembly,
        replicas: Replicas,
        rank: int,
        path: Path,
        saved: Mapping[str, Any],
        *,
        same: bool,
    ) -> None:
        self.dropped: list[str] = []
        self._names = _names(assembly)
        self._device = _local(next(iter(self._names))).device
        self._replicas = replicas
        self._replica = assembly.layout.coordinates(rank)["replica"]
        self._ranks = assembly.layout.replica
        self._saved_ranks = saved["form"]["layout"]["replica"]
        self._rank = rank
        self._path = path
        self._steps = saved["steps"]
        self._same = same
        self._stored: Sequence[str] = ()

    def read(self) -> None:
        self._stored = [n for n in read_manifest(self._path).tensors if n.startswith(PREFIX)]
        own = [name for name in self._stored if name.startswith(f"{PREFIX}rank.")]
        raw = {name.rsplit("/", 1)[1] for name in own} - {"squared_norm"}
        if raw and not self._same:
            self.dropped.append(
                f"{', '.join(sorted(raw))} of compressed gradients cannot be cut anew for another "
                "layout or method and begin again"
            )
        for key, flat in self._replicas.flats.items():
            values = self._full(flat)
            if self._same:
                values |= self._raw(key)
            self._replicas.exchange.put_state(key, {**values, STEPS: torch.tensor(self._steps)})

    def _full(self, flat: FlatGradient) -> dict[str, Tensor]:
        """What has one entry per entry of the gradient."""
        found = {}
        for kind in FULL:
            if self._replicas.two_level or not self._held(flat, kind):
                continue
            if self._saved_ranks == self._ranks:
                found[kind] = self._of_replica(self._replica, flat, kind)
            elif kind in _COMMON:
                found[kind] = self._of_replica(0, flat, kind)
            else:
                parts = [self._of_replica(n, flat, kind) for n in range(self._saved_ranks)]
                found[kind] = torch.stack(parts).sum(0) / self._ranks
        return found

    def _held(self, flat: FlatGradient, kind: str) -> bool:
        stored = set(self._stored)
        return any(_full_name(0, kind, self._names[p.parameter]) in stored for p in flat.pieces)

    def _of_replica(self, replica: int, flat: FlatGradient, kind: str) -> Tensor:
        value, stored = torch.zeros(flat.numel, device=self._device), set(self._stored)
        wanted = {
            _full_name(replica, kind, self._names[piece.parameter]): _as_parameter(value, piece)
            for piece in flat.pieces
        }
        fill({name: part for name, part in wanted.items() if name in stored}, self._path)
        return value

    def _raw(self, key: str) -> dict[str, Tensor]:
        """What this rank kept in another form."""
        start = f"{PREFIX}rank.{self._rank}/{key}/"
        tensors = read_manifest(self._path).tensors
        wanted = {
            name: torch.zeros(tensors[name].shape, device=self._device)
            for name in self._stored
            if name.startswith(start)
        }
        fill(wanted, self._path)
        return {name.removeprefix(start): tensor for name, tensor in wanted.items()}


def _names(assembly: Assembly) -> dict[nn.Parameter, str]:
    return {parameter: name for name, parameter in assembly.weights.named_parameters()}


def _full_name(replica: int, kind: str, parameter: str) -> str:
    return f"{PREFIX}replica.{replica}.{kind}.{parameter}"


def _local(parameter: nn.Parameter) -> Tensor:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def _as_parameter(value: Tensor, piece: Piece) -> Tensor:
    """The part of a flat vector that belongs to one parameter, in its form."""
    parameter = piece.parameter
    local = value[piece.start : piece.start + piece.numel].view(_local(parameter).shape)
    if not isinstance(parameter, DTensor):
        return local
    return DTensor.from_local(
        local,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
