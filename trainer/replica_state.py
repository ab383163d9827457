"""What replicas have not sent yet, in checkpoints and snapshots.

What has one entry per entry of a gradient is saved as a tensor of each parameter's form, once for
every replica: `comms.replica.<replica>.<kind>.<parameter>`. So it is loaded in any layout, and
another number of replicas shares out its sum. What is not of that form is saved as it is,
`comms.rank.<rank>/<key>-<what lies in it>/<kind>`, and loaded only where nothing has changed. Ranks
are counted inside an island. Where there are several, each has state of its own, in checkpoints
with its prefix before these names.

Guarantees, each asserted in tests/trainer/test_replica_state.py:
- in the same layout all of it is as it was, bitwise;
- in another one the sum over replicas of what was not sent, of momentum and of estimates is the
  same, and what all replicas held alike stays so;
- what cannot be kept is dropped, and said so.
"""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict
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
from trainer.checkpoint.filling import fill
from trainer.checkpoint.loading import Chosen
from trainer.checkpoint.manifest import TensorEntry

PREFIX = "comms."
_COMMON = ("estimate_sum",)
"""Of what has one entry per entry of a gradient: what all replicas hold alike."""


def replica_tensors(
    assembly: Assembly,
    rank: int,
    state: Mapping[str, Tensor] | None = None,
    names: Mapping[nn.Parameter, str] | None = None,
) -> dict[str, Tensor]:
    """This rank's state by name, as of the last settled step; live tensors and views of them. Or
    what was the state when its exchange gave `state`; with `names`, at any moment."""
    replicas = assembly.replicas
    if replicas is None:
        return {}
    if names is None:
        names = parameter_names(assembly)
    replica = assembly.layout.coordinates(rank)["replica"]
    rank %= assembly.layout.island_ranks
    found: dict[str, Tensor] = {}
    for path, value in (replicas.exchange.state_dict() if state is None else state).items():
        key, kind = path.rsplit("/", 1)
        if kind == STEPS:
            continue
        if kind in FULL and replicas.inside == 1:
            for piece in replicas.flats[key].pieces:
                name = _full_name(replica, kind, names[piece.parameter])
                found[name] = _as_parameter(value, piece)
        else:
            found[_raw_start(rank, key, replicas.flats[key], names) + kind] = value
    return found


def describe_replicas(assembly: Assembly) -> dict[str, Any] | None:
    """What has to be the same for all of the state to be loaded as it is, and the committed steps;
    None where nothing is compressed. All ranks of a run describe it alike."""
    replicas = assembly.replicas
    if replicas is None:
        return None
    state = replicas.exchange.state_dict()
    steps = [int(value) for path, value in state.items() if path.endswith(f"/{STEPS}")]
    return {
        "form": {
            "layout": {**asdict(assembly.layout), "island": 1},
            "inside": replicas.inside,
            "config": asdict(replicas.config),
        },
        "steps": max(steps, default=0),
    }


def restore_replicas(
    assembly: Assembly,
    rank: int,
    chosen: Chosen,
    group: dist.ProcessGroup,
    *,
    before: str = "",
    mine: bool = True,
) -> list[str]:
    """Continue from the state in a checkpoint or snapshot, which has `before` before its names;
    what could not be kept, for people. All ranks of `group` call it; those for which it is not
    `mine` only help others to read."""
    replicas, saved = assembly.replicas, chosen.manifest.meta.get("replicas")
    if saved is None or not saved["steps"]:
        # Nothing was left unsent by steps that sent everything.
        return []
    if replicas is None:
        return ["replicas do not compress any more: what they had not sent yet is lost"]
    own = describe_replicas(assembly)
    assert own is not None
    same = saved["form"] == own["form"]
    if not same and max(saved["form"]["inside"], replicas.inside) > 1:
        return [
            "parts of gradients that ranks of one host had to send cannot be cut anew for another "
            "layout or method: what was not sent yet is lost"
        ]
    tensors = chosen.manifest.tensors
    reader = _Reader(assembly, replicas, rank, tensors, saved, same=same, before=before)
    if chosen.source.place == "memory":
        wanted: dict[str, Tensor] = {}
        if mine:
            reader.read(wanted.update)
        chosen.source.prepare(wanted, group)

    def read() -> None:
        with chosen.source.opened() as blocks:
            if mine:
                reader.read(lambda state: fill(state, tensors, blocks))

    agree(group, f"reading compression state of {chosen.path.name}", read)
    return reader.dropped


Fill = Callable[[Mapping[str, Tensor]], None]


class _Reader:
    """Reads what one rank needs."""

    def __init__(
        self,
        assembly: Assembly,
        replicas: Replicas,
        rank: int,
        stored: Mapping[str, TensorEntry],
        saved: Mapping[str, Any],
        *,
        same: bool,
        before: str,
    ) -> None:
        self.dropped: list[str] = []
        self._names = parameter_names(assembly)
        self._device = _local(next(iter(self._names))).device
        self._replicas = replicas
        self._replica = assembly.layout.coordinates(rank)["replica"]
        self._ranks = assembly.layout.replica
        self._saved_ranks = saved["form"]["layout"]["replica"]
        self._rank = rank % assembly.layout.island_ranks
        self._entries = stored
        self._steps = saved["steps"]
        self._same = same
        self._before = before
        self._stored = frozenset(
            name.removeprefix(before) for name in stored if name.startswith(before + PREFIX)
        )
        self._fill_there: Fill = lambda _state: None

    def read(self, fill_there: Fill) -> None:
        """Give the exchange what `fill_there` fills, by the names under which it is stored."""
        self._fill_there = fill_there
        self.dropped.clear()
        left = {name for name in self._stored if name.startswith(_rank_start(self._rank))}
        for key, flat in self._replicas.flats.items():
            values = self._full(flat)
            if self._same:
                start = _raw_start(self._rank, key, flat, self._names)
                raw = {name: self._zeros(name) for name in left if name.startswith(start)}
                self._fill(raw)
                values |= {name.removeprefix(start): tensor for name, tensor in raw.items()}
                left -= raw.keys()
            self._replicas.exchange.put_state(key, {**values, STEPS: torch.tensor(self._steps)})
        if kinds := {name.rsplit("/", 1)[1] for name in left} - {"squared_norm"}:
            self.dropped.append(
                f"{', '.join(sorted(kinds))} of compressed gradients cannot be cut anew for "
                "another layout or method and begin again"
            )

    def _full(self, flat: FlatGradient) -> dict[str, Tensor]:
        """What has one entry per entry of the gradient."""
        found = {}
        for kind in FULL:
            if self._replicas.inside > 1 or not self._held(flat, kind):
                continue
            if self._saved_ranks == self._ranks:
                found[kind] = self._of_replica(self._replica, flat, kind)
            elif kind in _COMMON:
                found[kind] = self._of_replica(0, flat, kind)
            else:
                total = self._of_replica(0, flat, kind)
                for replica in range(1, self._saved_ranks):
                    total += self._of_replica(replica, flat, kind)
                found[kind] = total / self._ranks
        return found

    def _held(self, flat: FlatGradient, kind: str) -> bool:
        names = (_full_name(0, kind, self._names[piece.parameter]) for piece in flat.pieces)
        return not self._stored.isdisjoint(names)

    def _of_replica(self, replica: int, flat: FlatGradient, kind: str) -> Tensor:
        value = torch.zeros(flat.numel, device=self._device)
        wanted = {
            _full_name(replica, kind, self._names[piece.parameter]): _as_parameter(value, piece)
            for piece in flat.pieces
        }
        self._fill({name: part for name, part in wanted.items() if name in self._stored})
        return value

    def _fill(self, state: Mapping[str, Tensor]) -> None:
        self._fill_there({self._before + name: tensor for name, tensor in state.items()})

    def _zeros(self, name: str) -> Tensor:
        entry = self._entries[self._before + name]
        return torch.zeros(entry.shape, device=self._device)


def parameter_names(assembly: Assembly) -> dict[nn.Parameter, str]:
    """Called between steps: within one, sharded parameters may be whole ones instead."""
    return {parameter: name for name, parameter in assembly.weights.named_parameters()}


def _full_name(replica: int, kind: str, parameter: str) -> str:
    return f"{PREFIX}replica.{replica}.{kind}.{parameter}"


def _rank_start(rank: int) -> str:
    return f"{PREFIX}rank.{rank}/"


def _raw_start(rank: int, key: str, flat: FlatGradient, names: Mapping[nn.Parameter, str]) -> str:
    """What comes before the kind. Another cut of gradients must not find state under its key."""
    inside = [(names[piece.parameter], piece.start, piece.numel) for piece in flat.pieces]
    return f"{_rank_start(rank)}{key}-{zlib.crc32(repr(inside).encode()):08x}/"


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
