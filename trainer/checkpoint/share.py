"""Which rank writes which part of the state. DCP plans; nothing is written here.

Guarantees, each asserted in tests/trainer/checkpoint/test_share.py:
- every element of every tensor is written by exactly one rank, whatever the placements;
- replicated tensors are spread over the ranks by size;
- a rank that holds nothing of a tensor, or nothing at all, writes nothing of it;
- states that differ between ranks are refused on all of them.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.default_planner import (
    DefaultSavePlanner,
    create_default_local_save_plan,
)
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
from trainer.checkpoint.manifest import Chunk, TensorEntry
from trainer.checkpoint.shard_file import DTYPES, Piece, dtype_code, lay_out

State = Mapping[str, Tensor]
"""Tensors by name, all ranks with the same names. A DTensor is one tensor spread over ranks, a
plain tensor is the same on all of them."""

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
    """Every tensor of the checkpoint, the same on all ranks."""


def form_of(state: State) -> Form:
    """All of a state that a share depends on: names, types, shapes and placements."""
    return tuple(
        (name, tensor.dtype, tensor.shape, tensor.device_mesh, tensor.placements)
        if isinstance(tensor, DTensor)
        else (name, tensor.dtype, tensor.shape)
        for name, tensor in state.items()
    )


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
    _check_same_states([rows["form"] for rows in rows_by_rank])
    plans, chunks = _global_plan([rows["items"] for rows in rows_by_rank])
    tensors = {
        name: TensorEntry(
            dtype_code(name, tensor.dtype), tuple(tensor.shape), tuple(chunks.get(name, ()))
        )
        for name, tensor in state.items()
    }
    rank = rank_of(group)
    mine = [
        (item.index.fqn, state[item.index.fqn].dtype, tuple(_data_of(item).chunk.sizes))
        for item in plans[rank].items
    ]
    return Share(
        form=form_of(state),
        file=_file_name(rank, size_of(group)),
        pieces=lay_out(mine),
        tensors=tensors,
    )


def _file_name(rank: int, ranks: int) -> str:
    return f"shard-{rank:05d}-of-{ranks:05d}.safetensors"


def _local_rows(state: State) -> dict[str, Any]:
    """This rank's write items as JSON, largest first: DCP gives each replicated block, in this
    order, to the rank with the least so far."""
    for name, tensor in state.items():
        dtype_code(name, tensor.dtype)
    items = [
        item
        for item in create_default_local_save_plan(dict(state), is_coordinator=False).items
        if _data_of(item).chunk.sizes.numel()
    ]
    items.sort(key=lambda item: (-(item.tensor_storage_size() or 0), item.index.fqn))
    outline = ";".join(
        f"{name} {dtype_code(name, tensor.dtype)} {list(tensor.shape)}"
        for name, tensor in state.items()
    )
    return {"form": zlib.crc32(outline.encode()), "items": [_row(item) for item in items]}


def _check_same_states(forms: list[int]) -> None:
    odd = [rank for rank, form in enumerate(forms) if form != forms[0]]
    if odd:
        raise RanksFailed(
            f"ranks {odd} pass other tensor names, types, shapes or order than rank 0; "
            "all ranks must save the same state"
        )


def _global_plan(
    rows_by_rank: list[list[Any]],
) -> tuple[list[SavePlan], dict[str, list[Chunk]]]:
    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    plans, _ = planner.create_global_plan(
        [SavePlan([_item(row) for row in rows]) for rows in rows_by_rank]
    )
    chunks: dict[str, list[Chunk]] = {}
    for rank, plan in enumerate(plans):
        file = _file_name(rank, len(plans))
        for item in plan.items:
            chunk = _data_of(item).chunk
            chunks.setdefault(item.index.fqn, []).append(
                Chunk(file, tuple(chunk.offsets), tuple(chunk.sizes))
            )
    return plans, chunks


def _data_of(item: WriteItem) -> TensorWriteData:
    assert item.tensor_data is not None, f"{item.index.fqn} is not a tensor"
    return item.tensor_data


def _row(item: WriteItem) -> list[Any]:
    data = _data_of(item)
    code = dtype_code(item.index.fqn, data.properties.dtype)
    chunk = data.chunk
    return [
        item.index.fqn,
        item.type.name,
        code,
        list(data.size),
        list(chunk.offsets),
        list(chunk.sizes),
    ]


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
