"""How the parameters of one block are cut over the ranks, and packed into flat buffers.

G and O are the ranks on the axes `gradients` and `optimizer`, S the elements of one rank's slot:
the largest optimizer shard of every parameter, one after the other. A rank's weight shard has G x O
pieces, of which piece (g, o) belongs to the rank at that place.

Guarantees, each asserted in tests/parallel/hierarchy/test_shards.py:
- unpacking what was packed gives it back, whatever the sizes;
- piece (g, o) is what the DTensor placement gives to the rank at (g, o);
- what no parameter uses stays zero.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from parallel.hierarchy.mesh import spread_axes
from parallel.hierarchy.volume import GroupShape, ParameterShape
from parallel.hierarchy.widths import AXES, Widths, nested_piece, piece


def cut_dim(shape: Sequence[int], widths: Widths) -> int:
    """The dim to cut: rows, but stacked experts (3-D) inside the experts where their number does
    not divide evenly, since few of them over many ranks would leave most ranks with nothing."""
    if len(shape) != 3 or shape[0] % widths.optimizer == 0:
        return 0
    even = [dim for dim in (1, 2) if shape[dim] % widths.optimizer == 0]
    return even[0] if even else 0


@dataclass(frozen=True, kw_only=True)
class Slot:
    """Where a trained parameter lies in its group's buffers."""

    name: str
    shape: ParameterShape
    start: int
    """First element in S."""

    elements: int
    """Elements reserved: the largest optimizer shard."""


class ShardGroup:
    """The parameters of one block: their places in flat buffers, and this rank's fp32 masters."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        widths: Widths,
        mesh: DeviceMesh,
        device: torch.device,
        is_block: bool,
        gathers_per_round: int,
    ) -> None:
        shapes = {name: _shape_of(p, widths) for name, p in parameters.items()}
        self.shape = GroupShape(
            parameters=tuple(shapes.values()), gathers_per_round=gathers_per_round
        )
        self.is_block = is_block
        self.widths = widths
        self.place = tuple(mesh.get_local_rank(axis) for axis in AXES[1:])
        self.slots = tuple(_slots(shapes, widths))
        self.slot_elements = self.shape.slot_elements(widths)
        self.master_S = torch.zeros(self.slot_elements, dtype=torch.float32, device=device)
        self.masters = {s.name: self._master(s, mesh) for s in self.slots}

    def spread(self, flat_S: Tensor, slot: Slot, mesh: DeviceMesh) -> DTensor:
        """This rank's piece of a parameter inside a flat buffer, as part of the whole tensor."""
        shape, whole = slot.shape, torch.Size(slot.shape.shape)
        _, rows = nested_piece(shape.rows, self.widths.cuts, self.place)
        axes = spread_axes(mesh)
        return DTensor.from_local(
            _piece_of(flat_S, slot, rows),
            mesh[axes],
            [Replicate() if axis == "replica" else Shard(shape.dim) for axis in axes],
            run_check=False,
            shape=whole,
            stride=torch.empty(whole, device="meta").stride(),
        )

    @torch.no_grad()
    def adopt_whole(self, slot: Slot, whole: Tensor) -> None:
        """Set the master of one parameter from the whole tensor."""
        start, rows = nested_piece(slot.shape.rows, self.widths.cuts, self.place)
        own = whole.narrow(slot.shape.dim, start, rows)
        _piece_of(self.master_S, slot, rows).copy_(own)

    @torch.no_grad()
    def adopt_shard(self, slot: Slot, shard: Tensor) -> None:
        """Set the master of one parameter from this rank's weight shard, which contains it."""
        dim = slot.shape.dim
        start, rows = nested_piece(shard.shape[dim], self.widths.cuts[1:], self.place[1:])
        _piece_of(self.master_S, slot, rows).copy_(shard.narrow(dim, start, rows))

    @torch.no_grad()
    def add_packed(self, slot: Slot, shard: Tensor, buffer_GOS: Tensor) -> None:
        """Add a tensor shaped like the weight shard to its places in the buffer."""
        for part, place in self._pairs(slot, shard, buffer_GOS):
            place.add_(part)

    @torch.no_grad()
    def unpack(self, slot: Slot, buffer_GOS: Tensor, shard: Tensor) -> None:
        """Copy from the buffer into a tensor shaped like the weight shard."""
        for part, place in self._pairs(slot, shard, buffer_GOS):
            part.copy_(place)

    def _pairs(
        self, slot: Slot, shard: Tensor, buffer_GOS: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Views of the shard and of the buffer that correspond to each other."""
        dim = slot.shape.dim
        groups, parts = self.widths.cuts[1:]
        rows = shard.shape[dim]
        own_GOs = buffer_GOS[..., slot.start : slot.start + slot.elements]
        if rows * slot.shape.row_elements == groups * parts * slot.elements:
            size = (*shard.shape[:dim], rows // (groups * parts), *shard.shape[dim + 1 :])
            cut = shard.unflatten(dim, (groups, parts, size[dim])).movedim((dim, dim + 1), (0, 1))
            yield cut, own_GOs.unflatten(-1, size)
            return
        for g in range(groups):
            outer_start, outer_rows = piece(rows, groups, g)
            for o in range(parts):
                start, length = piece(outer_rows, parts, o)
                part = shard.narrow(dim, outer_start + start, length)
                yield part, own_GOs[g, o, : part.numel()].view(part.shape)

    def _master(self, slot: Slot, mesh: DeviceMesh) -> nn.Parameter:
        return nn.Parameter(self.spread(self.master_S, slot, mesh))


def make_groups(
    model: nn.Module, blocks: Sequence[nn.Module], make: Callable[[dict, bool], ShardGroup]
) -> list[ShardGroup]:
    """One group per block and one of what is left, in the order of `blocks`, empty ones left out.

    `make(parameters by name, is block)` builds a group. A parameter that several modules share
    belongs to the first of them.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    taken: set[nn.Parameter] = set()
    groups = []
    for module in (*blocks, model):
        own = [p for p in module.parameters() if p not in taken]
        taken.update(own)
        if own:
            groups.append(make({names[p]: p for p in own}, module is not model))
    return groups


def _shape_of(parameter: nn.Parameter, widths: Widths) -> ParameterShape:
    shape = tuple(parameter.shape)
    return ParameterShape(
        shape=shape, dim=cut_dim(shape, widths), trainable=parameter.requires_grad
    )


def _slots(shapes: Mapping[str, ParameterShape], widths: Widths) -> Iterator[Slot]:
    start = 0
    for name, shape in shapes.items():
        if shape.trainable:
            elements = shape.padded(widths.optimizer)
            yield Slot(name=name, shape=shape, start=start, elements=elements)
            start += elements


def _piece_of(flat_S: Tensor, slot: Slot, rows: int) -> Tensor:
    """The used part of a slot, in the shape of the piece."""
    shape = slot.shape.shape
    size = (*shape[: slot.shape.dim], rows, *shape[slot.shape.dim + 1 :])
    used = flat_S[slot.start : slot.start + rows * slot.shape.row_elements]
    return used.view(size)
