"""Tokens on disk: a file per block, and a table that says which blocks are there.

Everything in a store is a function of its key, so two processes that write the same block do no
harm. A block's file appears whole, then its entry in the table: who sees the entry can read the
file. Nothing in it is executed or unpickled.

D documents, N tokens of a block.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from trainer.data.cache import disk_errors, make_folder, written_aside
from trainer.data.encoding import Encoded
from trainer.data.packing import Packing
from trainer.data.rows import UNKNOWN
from trainer.errors import DataError

MAGIC = 0x4272_6169_6431
HEADER_WORDS = 6
BLOCKS_PER_FOLDER = 1000
ENTRY = np.dtype([("rows", "<i4"), ("skipped", "<i4")])


@dataclass(frozen=True)
class TokenBlock:
    """One block, mapped from its file."""

    tokens: NDArray[np.unsignedinteger]
    """[N]: documents one after the other."""

    offsets: NDArray[np.int64]
    """[D + 1]: where each document begins in `tokens`, and N."""

    places: NDArray[np.int64]
    """[D, 2]: file and line of each document."""

    mask: NDArray[np.uint8] | None
    """[N]: 1 where the token is a target; None where all are."""

    refused: int
    """Documents of the block that could not be used."""

    @property
    def lengths_D(self) -> NDArray[np.int64]:
        """Pairs of an input token and the next token in each document."""
        return np.diff(self.offsets) - 1


class TokenStore:
    """The blocks of one source, tokenizer and kind."""

    def __init__(self, folder: Path, num_blocks: int) -> None:
        self.folder = folder
        self.num_blocks = num_blocks

    def path(self, block: int) -> Path:
        """File of one block."""
        return self.folder / f"{block // BLOCKS_PER_FOLDER:06d}" / f"{block:09d}.tokens"

    def has(self, block: int) -> bool:
        """Whether the block's file is there."""
        return self.path(block).is_file()

    def write(self, block: int, documents: Sequence[Encoded], *, refused: int, wide: bool) -> None:
        """Put a block on disk; `wide` if token ids may exceed 16 bits. Raises ResourceError."""
        masked = any(document.mask is not None for document in documents)
        dtype = np.dtype(np.uint32 if wide else np.uint16)
        sizes = [len(document.tokens) for document in documents]
        offsets = np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))
        places = [(document.place.file, document.place.line) for document in documents]
        header = [MAGIC, len(documents), int(offsets[-1]), dtype.itemsize, masked, refused]
        make_folder(self.path(block).parent)
        with written_aside(self.path(block)) as file:
            file.write(np.array(header, dtype="<i8").tobytes())
            file.write(offsets.astype("<i8").tobytes())
            file.write(np.array(places, dtype="<i8").tobytes())
            for document in documents:
                file.write(document.tokens.astype(dtype).tobytes())
            for document in documents:
                if document.mask is not None:
                    file.write(document.mask.astype(np.uint8).tobytes())

    def read(self, block: int) -> TokenBlock:
        """Map a block. Raises DataError where its file is missing or damaged."""
        path = self.path(block)
        try:
            data = np.memmap(path, dtype=np.uint8, mode="r")
        except (OSError, ValueError) as error:
            raise _damaged(path) from error
        header = data[: 8 * HEADER_WORDS].view("<i8").tolist() if len(data) >= 48 else [0] * 6
        magic, documents, tokens, width, masked, refused = header
        sizes = [8 * HEADER_WORDS, 8 * (documents + 1), 16 * documents, width * tokens]
        sizes.append(tokens if masked else 0)
        if magic != MAGIC or len(data) != sum(sizes):
            raise _damaged(path)
        _, offsets, places, ids, mask = np.split(data, np.cumsum(sizes)[:-1])
        return TokenBlock(
            tokens=ids.view(f"<u{width}"),
            offsets=offsets.view("<i8"),
            places=places.view("<i8").reshape(-1, 2),
            mask=mask if masked else None,
            refused=refused,
        )


class RowTable:
    """How many rows each block of a store makes at one sequence length; -1 while unknown."""

    def __init__(self, store: TokenStore, seq_len: int, packing: Packing) -> None:
        self._path = store.folder / f"rows-{packing}-{seq_len}"
        self._num_blocks = store.num_blocks

    def create(self) -> None:
        """Make the table with nothing known, unless it is there."""
        if not self._path.exists():
            empty = np.full(self._num_blocks, UNKNOWN, dtype=ENTRY)
            fresh = self._path.with_name(f"{self._path.name}.{uuid4().hex}")
            with written_aside(fresh) as file:
                file.write(empty.tobytes())
            with disk_errors(self._path):
                _adopt(fresh, self._path)

    def read(self) -> NDArray[np.void]:
        """A copy of the table as it is now: [B] of ENTRY."""
        entries = np.fromfile(self._path, dtype=ENTRY)
        if len(entries) != self._num_blocks:
            raise _damaged(self._path)
        return entries

    def write(self, block: int, *, rows: int, skipped: int) -> None:
        """Enter one block, after its file is on disk."""
        entry = np.array([(rows, skipped)], dtype=ENTRY).tobytes()
        with disk_errors(self._path):
            descriptor = os.open(self._path, os.O_WRONLY)
            try:
                os.pwrite(descriptor, entry, block * ENTRY.itemsize)
            finally:
                os.close(descriptor)


def _adopt(fresh: Path, path: Path) -> None:
    # A link does not replace: entries that another process has made since stay.
    try:
        os.link(fresh, path)
    except FileExistsError:
        pass
    finally:
        fresh.unlink(missing_ok=True)


def _damaged(path: Path) -> DataError:
    return DataError(f"{path} is missing or damaged; delete the folder {path.parent} and run again")
