"""Which rank writes which part of the state. DCP plans; nothing is written here.

Guarantees, each asserted in tests/trainer/checkpoint/test_share.py:
- every element of every tensor is written by exactly one rank, whatever the placements;
- replicated tensors are spread over the ranks by size;
- a rank that holds nothing of a tensor, or nothing at all, writes nothing of it;
- ranks may hold different tensors; one that they hold with different types or shapes is refused on
  all of them.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import (
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.tensor import DTensor

from trainer.checkpoint.agreement import RanksFailed, agree_all, rank_of, size_of
from trainer.checkpoint.boxes import boxes_of
from trainer.checkpoint.manifest import Chunk, TensorEntry
from trainer.checkpoint.shard_file import DTYPES, Piece, dtype_code, lay_out

State = Mapping[str, Tensor]
"""Tensors by name. A DTensor is one tensor spread over ranks, a plain tensor is the same on all
ranks that have it."""

Outline = dict[str, list[Any]]
"""Type code and shape of tensors, by name."""

Form = tuple[tuple[Any, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Share:
    """What this rank writes, and where everything will lie."""

    form: Form
    """The state's form for which this holds."""

    file: str
    """Name of this rank's data file; it is written only if there are pieces."""

    pieces: list[Piece]
    tensors: dict[str, TensorEntry]
    """Every tensor of the checkpoint, whichever rank holds it; the same on all ranks."""


def form_of(state: State) -> Form:
    """All of a state that a share depends on: names, types, shapes and placements."""
    return tuple(
        (name, tensor.dtype, tensor.shape, tensor.device_mesh, tensor.placements)
        if isinstance(tensor, DTensor)
        else (name, tensor.dtype, tensor.shape)
        for name, tensor in state.items()
    )


def outline_of(state: State) -> Outline:
    """What this rank holds. Raises ValueError for a type that cannot be stored."""
    return {
        name: [dtype_code(name, tensor.dtype), list(tensor.shape)] for name, tensor in state.items()
    }


def joined_outline(outlines: list[Outline]) -> Outline:
    """Type and shape of every tensor that some rank holds. Raises RanksFailed where two differ."""
    joined: Outline = {}
    for rank, outline in enumerate(outlines):
        for name, form in outline.items():
            if joined.setdefault(name, form) != form:
                raise RanksFailed(
                    f"rank {rank} holds {name} as {form[0]}{form[1]}, a rank before it as "
                    f"{joined[name][0]}{joined[name][1]}; all ranks must save one state"
                )
    return joined


def local_part(tensor: Tensor) -> Tensor:
    """The block of `tensor` that this rank holds, sharing its memory."""
    with torch.no_grad():
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.detach()


def plan_share(state: State, group: ProcessGroup | None) -> Share:
    """Spread the writing of `state` over the ranks of `group`. All of them call it.

    Raises RanksFailed on all ranks where a state cannot be stored or states differ, ValueError on
    all where the blocks of a tensor overlap or leave gaps.
    """
    rows_by_rank = agree_all(group, "planning a checkpoint", lambda: _local_rows(state))
    outline = joined_outline([rows["outline"] for rows in rows_by_rank])
    plans = _global_plan([rows["items"] for rows in rows_by_rank])
    chunks = _chunks_of(plans)
    rank = rank_of(group)
    file = _file_name(rank, size_of(group))
    parts = {
        (name, chunk.offsets): chunk.part
        for name, found in chunks.items()
        for chunk in found
        if chunk.file == file
    }
    mine = [
        (name, parts[name, box.offsets], tensor.dtype, box)
        for name, tensor in state.items()
        for box in boxes_of(tensor)
        if (name, box.offsets) in parts
    ]
    return Share(
        form=form_of(state),
        file=file,
        pieces=lay_out(mine),
        tensors={
            name: TensorEntry(code, tuple(shape), tuple(chunks.get(name, ())))
            for name, (code, shape) in outline.items()
        },
    )


def _file_name(rank: int, ranks: int) -> str:
    return f"shard-{rank:05d}-of-{ranks:05d}.safetensors"


def _local_rows(state: State) -> dict[str, Any]:
    """This rank's write items as JSON, largest first: DCP gives each replicated block, in this
    order, to the rank with the least so far."""
    rows, outline = [], outline_of(state)
    for name, tensor in state.items():
        code = outline[name][0]
        kind = "SHARD" if isinstance(tensor, DTensor) else "TENSOR"
        for box in boxes_of(tensor):
            row = [name, kind, code, list(tensor.shape), list(box.offsets), list(box.shape)]
            rows.append((torch.Size(box.shape).numel() * tensor.dtype.itemsize, row))
    rows.sort(key=lambda sized: (-sized[0], sized[1][0], sized[1][4]))
    return {"outline": outline, "items": [row for _, row in rows]}


def _global_plan(rows_by_rank: list[list[Any]]) -> list[SavePlan]:
    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    plans, _ = planner.create_global_plan(
        [SavePlan([_item(row) for row in rows]) for rows in rows_by_rank]
    )
    return plans


def _chunks_of(plans: list[SavePlan]) -> dict[str, list[Chunk]]:
    """Where every block of every tensor is written."""
    chunks: dict[str, list[Chunk]] = {}
    for rank, plan in enumerate(plans):
        file, written = _file_name(rank, len(plans)), Counter[str]()
        for item in plan.items:
            name, block = item.index.fqn, _data_of(item).chunk
            chunk = Chunk(file, tuple(block.offsets), tuple(block.sizes), written[name])
            chunks.setdefault(name, []).append(chunk)
            written[name] += 1
    return chunks


def _data_of(item: WriteItem) -> TensorWriteData:
    assert item.tensor_data is not None, f"{item.index.fqn} is not a tensor"
    return item.tensor_data


def _item(row: list[Any]) -> WriteItem:
    name, kind, code, size, offsets, sizes = row
    return WriteItem(
        index=MetadataIndex(name, offsets),
        type=WriteItemType[kind],
        tensor_data=TensorWriteData(
            chunk=ChunkStorageMetadata(offsets=torch.Size(offsets), sizes=torch.Size(sizes)),
            properties=TensorProperties(dtype=DTYPES[code]),
            size=torch.Size(size),
        ),
    )
