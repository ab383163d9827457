"""Tensors that come and go between snapshots: each rank keeps its own, and nobody plans them.

Guarantees, each asserted in tests/trainer/keeping/test_snapshots.py:
- a snapshot holds the loose tensors that there were at its moment, and no others;
- until `kept` is set, and no longer, they must not be written to.
"""

import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from trainer.checkpoint.boxes import boxes_of
from trainer.checkpoint.manifest import Chunk, TensorEntry
from trainer.checkpoint.shard_file import dtype_code, lay_out
from trainer.checkpoint.share import State, local_part
from trainer.keeping.header import WORD_BYTES, aligned
from trainer.keeping.pieces import Placed


@dataclass(frozen=True, kw_only=True)
class Loose:
    """What one snapshot takes along beside the planned state."""

    marks: Hashable
    """The same as in another snapshot only if all tensors are the same ones, in the same memory."""

    tensors: Callable[[], State]
    """Called on the thread that copies, and only where the marks are new."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    kept: threading.Event = field(default_factory=threading.Event)
    """Set once they are copied, or never will be."""


@dataclass(frozen=True, kw_only=True)
class PlacedLoose:
    """Loose tensors with their places behind the planned pieces."""

    placed: tuple[Placed, ...]
    sources: tuple[Tensor, ...]
    """This rank's blocks, in the order of `placed`."""

    entries: dict[str, TensorEntry]


NOTHING = PlacedLoose(placed=(), sources=(), entries={})


def place_loose(state: State, begin: int) -> PlacedLoose:
    """Where each block of `state` that this rank holds goes, from byte `begin` on."""
    blocks = []
    for name, tensor in state.items():
        for part, box in enumerate(boxes_of(tensor)):
            blocks.append((name, part, tensor.dtype, box))
    placed: list[Placed] = []
    chunks: dict[str, list[Chunk]] = {}
    for piece in lay_out(blocks):
        end = begin + piece.end - piece.begin
        placed.append(Placed(piece, begin, end))
        begin = aligned(end, WORD_BYTES)
        chunk = Chunk("", piece.box.offsets, piece.shape, piece.part)
        chunks.setdefault(piece.name, []).append(chunk)
    entries = {
        name: TensorEntry(
            dtype_code(name, tensor.dtype), tuple(tensor.shape), tuple(chunks.get(name, ()))
        )
        for name, tensor in state.items()
    }
    sources = tuple(p.piece.box.of(local_part(state[p.piece.name])) for p in placed)
    return PlacedLoose(placed=tuple(placed), sources=sources, entries=entries)


def ready_event(device: torch.device) -> "torch.cuda.Event | None":
    """Behind all that the current stream of `device` was given so far; None on the CPU."""
    return torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None


def fetched(sources: tuple[Tensor, ...], ready: "torch.cuda.Event | None") -> list[Tensor]:
    """The blocks in host memory, as they were at `ready`."""
    if ready is None:
        return list(sources)
    stream = torch.cuda.Stream(sources[0].device)
    with torch.cuda.stream(stream):
        stream.wait_event(ready)
        return [source.to("cpu") for source in sources]
