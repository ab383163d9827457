"""One pass over the files of a source: where its documents lie, how large they are, what it is.

No document is held in memory: files are read in pieces, and a document over the limit is found by
its length. The fingerprint is of names, sizes and content: of every byte of JSON lines and of
files up to 64 MiB, of evenly spaced samples of larger ones.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from trainer.data.blocks import BlockBuilder, Blocks
from trainer.data.parquet import row_groups
from trainer.data.source import Source, SourceFile
from trainer.errors import DataError

PIECE_BYTES = 8 * 1024 * 1024
WHOLE_BYTES = 64 * 1024 * 1024
SAMPLES = 64
SAMPLE_BYTES = 64 * 1024
NEWLINE = 10


@dataclass(frozen=True)
class TooLarge:
    """A document over `max_document_bytes`; it is in no block."""

    name: str
    line: int
    """JSON lines: from 1. 0 where the document is the file."""

    size_bytes: int


@dataclass(frozen=True)
class Scan:
    """What one pass found."""

    blocks: Blocks
    too_large: tuple[TooLarge, ...]
    fingerprint: str
    """Of names, sizes and content; the place and times of the files do not matter."""


@dataclass(frozen=True)
class Lines:
    """Neighbouring complete lines. Offsets are in the file; `ends` include the newline."""

    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    first: int
    """Number of the first line, from 1."""


class Scanner:
    """Goes through a source once."""

    def __init__(self, source: Source, field: str, block_bytes: int, max_bytes: int) -> None:
        self._source = source
        self._field = field
        self._max_bytes = max_bytes
        self._builder = BlockBuilder(block_bytes)
        self._too_large: list[TooLarge] = []
        self._hash = hashlib.blake2b(digest_size=16)

    def run(self) -> Scan:
        """Read every file. Raises DataError where one cannot be read."""
        scan_file = {"text": self._text, "jsonl": self._json_lines, "parquet": self._parquet}
        for number, file in enumerate(self._source.files):
            self._hash.update(f"{file.name}\0{file.size_bytes}\0".encode(errors="surrogateescape"))
            try:
                scan_file[self._source.format](number, file)
            except OSError as error:
                raise DataError(f"{file.path} cannot be read: {error.strerror}") from error
        return Scan(self._builder.finish(), tuple(self._too_large), self._hash.hexdigest())

    def _text(self, number: int, file: SourceFile) -> None:
        if file.size_bytes > self._max_bytes:
            self._too_large.append(TooLarge(file.name, 0, file.size_bytes))
            return
        self._hash_content(file)
        if file.size_bytes:
            self._builder.add(number, 0, file.size_bytes, first=0, size_bytes=file.size_bytes)

    def _json_lines(self, number: int, file: SourceFile) -> None:
        with open(file.path, "rb") as opened:
            for lines in self._lines(opened):
                sizes = lines.ends - lines.starts
                begin = 0
                for bad in np.flatnonzero(sizes > self._max_bytes).tolist():
                    self._too_large.append(TooLarge(file.name, lines.first + bad, int(sizes[bad])))
                    self._add_lines(number, lines, begin, bad)
                    begin = bad + 1
                self._add_lines(number, lines, begin, len(sizes))

    def _lines(self, opened: BinaryIO) -> Iterator[Lines]:
        start, read, first = 0, 0, 1
        while piece := opened.read(PIECE_BYTES):
            self._hash.update(piece)
            ends = np.flatnonzero(np.frombuffer(piece, np.uint8) == NEWLINE) + (read + 1)
            read += len(piece)
            if len(ends):
                yield Lines(np.concatenate(([start], ends[:-1])), ends, first)
                start, first = int(ends[-1]), first + len(ends)
        if start < read:
            yield Lines(np.array([start]), np.array([read]), first)

    def _add_lines(self, number: int, lines: Lines, begin: int, stop: int) -> None:
        while begin < stop:
            start = int(lines.starts[begin])
            full = int(np.searchsorted(lines.ends[:stop], start + self._builder.room_bytes))
            last = min(full, stop - 1)
            end = int(lines.ends[last])
            self._builder.add(number, start, end, first=lines.first + begin, size_bytes=end - start)
            begin = last + 1

    def _parquet(self, number: int, file: SourceFile) -> None:
        self._hash_content(file)
        for group in row_groups(file.path, self._field):
            row_bytes = group.field_bytes / group.rows
            row, stop = group.first_row, group.first_row + group.rows
            while row < stop:
                wanted = max(int(np.ceil(self._builder.room_bytes / row_bytes)), 1)
                end = min(row + wanted, stop)
                # A whole number of rows may fall short of the block by rounding alone.
                size_bytes = (end - row) * row_bytes + 1e-6
                self._builder.add(number, row, end, first=row + 1, size_bytes=size_bytes)
                row = end

    def _hash_content(self, file: SourceFile) -> None:
        with open(file.path, "rb") as opened:
            if file.size_bytes <= WHOLE_BYTES:
                while piece := opened.read(PIECE_BYTES):
                    self._hash.update(piece)
                return
            for sample in range(SAMPLES):
                opened.seek(sample * (file.size_bytes - SAMPLE_BYTES) // (SAMPLES - 1))
                self._hash.update(opened.read(SAMPLE_BYTES))
