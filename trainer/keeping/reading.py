"""Blocks of tensors out of the shares of one snapshot."""

import mmap
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from trainer.checkpoint.shard_file import DTYPES
from trainer.keeping.folder import read_header
from trainer.keeping.header import PAGE_BYTES, Header, ShareDamaged
from trainer.keeping.pieces import Description, Stored, decode_description, names_of


class OpenShare:
    """A share that was found whole, mapped into memory; what is unlinked stays readable."""

    def __init__(self, path: Path, expected: Header) -> None:
        """Raises ShareDamaged where the share is not `expected` any more, OSError where it cannot
        be read."""
        self._path = path
        self._header = expected
        with path.open("rb") as file:
            # A private mapping: torch wants memory it could write to.
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self.require_unchanged()
        self._stored: dict[str, Stored] = names_of(description_of(path).stored)

    def block(self, name: str) -> Tensor:
        """The block stored as `name`. Raises ValueError where there is none."""
        if name not in self._stored:
            raise ValueError(f"{self._path} holds no {name}")
        stored = self._stored[name]
        dtype = DTYPES[stored.dtype]
        flat = torch.frombuffer(
            self._map,
            dtype=dtype,
            count=(stored.end - stored.begin) // dtype.itemsize,
            offset=self._header.payload_begin + stored.begin,
        )
        return flat.view(stored.shape)

    def require_unchanged(self) -> None:
        """Raise ShareDamaged where a process wrote to the share since it was checked."""
        packed = self._header.packed()
        if self._map[: len(packed)] != packed:
            raise ShareDamaged(f"{self._path} was written to by a process that should have ended")


class ShareReader:
    """Several open shares by file name; a `BlockReader`."""

    def __init__(self, shares: Mapping[str, OpenShare]) -> None:
        self._shares = shares

    def read(
        self, file: str, name: str, offsets: tuple[int, ...], lengths: tuple[int, ...]
    ) -> Tensor:
        """A block of the block stored as `name`, sharing its memory."""
        block = self._shares[file].block(name)
        for dim, (start, size) in enumerate(zip(offsets, lengths, strict=True)):
            block = block.narrow(dim, start, size)
        return block


def description_of(path: Path) -> Description:
    """What a share says about itself. Raises ShareDamaged where that is not whole."""
    return decode_description(description_text(path))


def description_text(path: Path) -> bytes:
    """The description as it stands in the file."""
    header = read_header(path)
    with path.open("rb") as file:
        file.seek(PAGE_BYTES)
        text = file.read(header.description_bytes)
    if zlib.crc32(text) != header.description_crc32:
        raise ShareDamaged(f"{path}: the description's checksum does not match")
    return text
