"""Versions of weights between processes of one host, through a file in shared memory.

For roles that share a machine without a network between them: trainers write their blocks, and any
number of readers take the newest version when it suits them; nobody waits for anybody. The file has
two slots, used in turn, so that a version can be written while the one before is being read.

    weights = SharedWeights.create("/dev/shm/run/weights", writers=[parts])    # once
    weights.write(version, {name: [tensor]}, writer=0)                         # a trainer
    found = SharedWeights.attach("/dev/shm/run/weights", writers=[parts]).read(after=version)

Guarantees, each asserted in tests/comms/weights/test_shared.py:
- a reader gets all of one version or nothing, also while versions are written as fast as can be;
- a version that not all writers have written, or one of them died writing, is not read;
- a file of other weights is refused.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from comms.weights.blocks import Block
from comms.weights.plan import ITEM_BYTES, Part
from comms.weights.wire import DTYPES, WORD_BYTES, block_of, digest, wrapped

_SLOTS = 2
_ALIGN_BYTES = 64
_BEING_WRITTEN = -1
_TRIES = 4

Writers = Sequence[Mapping[str, Part]]
"""What each writer gives, in the dtype that readers take; all blocks together are each tensor
once."""


class SharedWeights:
    """The weights in the file, seen from one process; use `create` or `attach`."""

    def __init__(self, path: Path, writers: Writers) -> None:
        self._writers = writers
        self._parts = _whole(writers)
        self._offsets, self._slot_bytes = _offsets(self._parts)
        self._head_words = _head_words(len(writers))
        data = torch.from_file(str(path), shared=True, size=file_bytes(writers), dtype=torch.uint8)
        head_bytes = self._head_words * WORD_BYTES
        self._head = data[:head_bytes].view(torch.int64)
        self._data = data[head_bytes:]

    @classmethod
    def create(cls, path: str | Path, *, writers: Writers) -> "SharedWeights":
        """Make the file; one process does, before the others attach. Raises ValueError where the
        writers do not give each tensor once."""
        path = Path(path)
        partial = path.with_name(f"{path.name}.partial")
        with partial.open("wb") as file:
            file.truncate(file_bytes(writers))
        made = cls(partial, writers)
        made._head[0] = _fingerprint(writers)
        made._head[1:] = _BEING_WRITTEN
        partial.replace(path)
        return made

    @classmethod
    def attach(cls, path: str | Path, *, writers: Writers) -> "SharedWeights":
        """Open the file. Raises ValueError where it is not of these weights and writers."""
        path = Path(path)
        if path.stat().st_size == file_bytes(writers):
            made = cls(path, writers)
            if int(made._head[0]) == _fingerprint(writers):
                return made
        raise ValueError(
            f"{path} holds other weights than the {len(_whole(writers))} tensors of "
            f"{len(writers)} writers; create it anew with those of this model"
        )

    def write(self, version: int, tensors: Mapping[str, Sequence[Tensor]], *, writer: int) -> None:
        """Write what `writer` gives; readers see the version once all writers have.

        Versions go up by one: even and odd ones use different slots.
        """
        slot = version % _SLOTS
        words = self._words(slot, writer)
        words[0] = _BEING_WRITTEN
        total = 0
        for number, (name, place, block) in enumerate(self._given(writer)):
            target = block_of(self._tensor(slot, name), (0,) * len(block.shape), block)
            target.copy_(tensors[name][place])
            total += (2 * number + 1) * _digest(target)
        words[1] = wrapped(total)
        words[0] = version

    def newest(self) -> int | None:
        """The newest version that is whole, without reading it; None where there is none."""
        found = [self._version(slot) for slot in range(_SLOTS)]
        return max((version for version in found if version is not None), default=None)

    def read(self, *, after: int = -1) -> tuple[int, dict[str, Tensor]] | None:
        """The newest version, if it is newer than `after`, as tensors of the reader's own.

        Raises RuntimeError where versions are written faster than they can be read.
        """
        for _ in range(_TRIES):
            version = self.newest()
            if version is None or version <= after:
                return None
            tensors = self._copied(version)
            if tensors is not None:
                return version, tensors
        raise RuntimeError(
            f"the weights changed {_TRIES} times while they were read; write versions less often "
            "than it takes to read one"
        )

    def _copied(self, version: int) -> dict[str, Tensor] | None:
        """A copy of the version; None where it was written over meanwhile."""
        slot = version % _SLOTS
        tensors = {name: self._tensor(slot, name).clone() for name in self._parts}
        for writer in range(len(self._writers)):
            total = 0
            for number, (name, _, block) in enumerate(self._given(writer)):
                held = block_of(tensors[name], (0,) * len(block.shape), block)
                total += (2 * number + 1) * _digest(held)
            written, checksum = self._words(slot, writer).tolist()
            if written != version or checksum != wrapped(total):
                return None
        return tensors

    def _version(self, slot: int) -> int | None:
        found = {int(self._words(slot, writer)[0]) for writer in range(len(self._writers))}
        return found.pop() if len(found) == 1 and _BEING_WRITTEN not in found else None

    def _words(self, slot: int, writer: int) -> Tensor:
        """Version and digest of what a writer wrote."""
        first = 1 + 2 * (slot * len(self._writers) + writer)
        return self._head[first : first + 2]

    def _given(self, writer: int) -> list[tuple[str, int, Block]]:
        parts = sorted(self._writers[writer].items())
        return [(n, i, block) for n, part in parts for i, block in enumerate(part.blocks)]

    def _tensor(self, slot: int, name: str) -> Tensor:
        part = self._parts[name]
        first = slot * self._slot_bytes + self._offsets[name]
        last = first + prod(part.shape) * ITEM_BYTES[part.dtype]
        return self._data[first:last].view(DTYPES[part.dtype]).view(part.shape)


def file_bytes(writers: Writers) -> int:
    """Size of the file: two versions and a few words."""
    _, slot_bytes = _offsets(_whole(writers))
    return _head_words(len(writers)) * WORD_BYTES + _SLOTS * slot_bytes


def _head_words(writers: int) -> int:
    words = 1 + 2 * _SLOTS * writers
    return -(-words * WORD_BYTES // _ALIGN_BYTES) * _ALIGN_BYTES // WORD_BYTES


def _whole(writers: Writers) -> dict[str, Part]:
    """Each tensor's shape and dtype."""
    found: dict[str, Part] = {}
    elements: dict[str, int] = {}
    for parts in writers:
        for name, part in sorted(parts.items()):
            first = found.setdefault(name, part)
            elements[name] = elements.get(name, 0) + sum(b.elements for b in part.blocks)
            if (first.shape, first.dtype) != (part.shape, part.dtype):
                raise ValueError(
                    f"weight {name} is {part.dtype} {part.shape} for one writer and {first.dtype} "
                    f"{first.shape} for another; writers share one model"
                )
    for name, part in found.items():
        if elements[name] != prod(part.shape):
            raise ValueError(
                f"weight {name} has {prod(part.shape)} elements and writers give "
                f"{elements[name]}; let each element be given by one writer"
            )
    return found


def _offsets(parts: Mapping[str, Part]) -> tuple[dict[str, int], int]:
    """Where tensors begin in a slot, and its size, in bytes."""
    offsets, at = {}, 0
    for name, part in sorted(parts.items()):
        offsets[name] = at
        at += -(-prod(part.shape) * ITEM_BYTES[part.dtype] // _ALIGN_BYTES) * _ALIGN_BYTES
    return offsets, at


def _fingerprint(writers: Writers) -> int:
    plain = [[n, p.shape, p.dtype, p.blocks] for parts in writers for n, p in sorted(parts.items())]
    return zlib.crc32(json.dumps([len(writers), plain]).encode())


def _digest(tensor: Tensor) -> int:
    data = tensor.reshape(-1).contiguous().view(torch.uint8)
    padded = torch.zeros(-(-data.numel() // WORD_BYTES) * WORD_BYTES, dtype=torch.uint8)
    padded[: data.numel()] = data
    return digest(padded.view(torch.int64))
