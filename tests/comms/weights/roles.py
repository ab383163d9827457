"""A small model, and what two ranks that train and two that sample give and take of it."""

import time
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from comms.weights.blocks import Block
from comms.weights.plan import Part
from trainer.checkpoint.boxes import boxes_of

NAMES = ("trainer 0", "trainer 1", "rollout 0", "rollout 1")
BUCKET_BYTES = 512


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 20), nn.Linear(20, 7, bias=False))


WHOLE = {name: value.detach().clone() for name, value in model().named_parameters()}
ELEMENTS = sum(value.numel() for value in WHOLE.values())


def given_parts(values: dict[str, Tensor]) -> dict[str, Part]:
    return {
        name: Part(
            shape=tuple(value.shape),
            dtype="float32",
            blocks=tuple(Block(box.offsets, box.shape) for box in boxes_of(value)),
        )
        for name, value in values.items()
    }


def given_tensors(values: dict[str, Tensor]) -> dict[str, list[Tensor]]:
    local = {n: v.to_local() if isinstance(v, DTensor) else v for n, v in values.items()}
    return {n: [box.of(local[n]) for box in boxes_of(v)] for n, v in values.items()}


def taken_parts(way: int | None) -> dict[str, Part]:
    """Whole tensors in bf16, or half the columns."""
    found = {}
    for name, value in WHOLE.items():
        shape = tuple(value.shape)
        block = Block((0,) * len(shape), shape)
        if way is not None and len(shape) == 2:
            half = shape[1] // 2
            first, last = (0, half) if way == 0 else (half, shape[1])
            block = Block((0, first), (shape[0], last - first))
        found[name] = Part(shape=shape, dtype="bfloat16", blocks=(block,))
    return found


def cut(value: Tensor, part: Part) -> Tensor:
    ((offsets, shape),) = part.blocks
    for dim, (first, size) in enumerate(zip(offsets, shape, strict=True)):
        value = value.narrow(dim, first, size)
    return value


def store_of(rank: int, port: int) -> dist.TCPStore:
    return dist.TCPStore(
        "127.0.0.1",
        port,
        is_master=rank == 0,
        timeout=timedelta(seconds=20),
        wait_for_workers=False,
    )


def leave_together(rank: int, store: dist.Store, ranks: int) -> None:
    """Rank 0's process keeps the store until the others have left."""
    store.add("left", 1)
    while rank == 0 and store.add("left", 0) < ranks:
        time.sleep(0.005)
