"""Documents of a block as they stand in the files, each with the place it came from."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from trainer.data.index import SourceIndex
from trainer.data.parquet import ParquetReader, scalar_bytes
from trainer.data.source import SourceFile
from trainer.errors import DataError


@dataclass(frozen=True, slots=True)
class Place:
    """Where a document stands."""

    file: int
    """Position in the source's files."""

    line: int
    """Line (JSON lines) or row (Parquet), from 1; 0 where the document is the file."""


@dataclass(frozen=True, slots=True)
class Document:
    """A text, or for chat whatever the messages field holds."""

    place: Place
    content: Any


@dataclass(frozen=True, slots=True)
class BadDocument:
    """What cannot be trained on, and why."""

    place: Place
    reason: str


class DocumentReader:
    """Reads blocks of one source."""

    def __init__(self, index: SourceIndex, *, max_document_bytes: int) -> None:
        self._index = index
        self._max_document_bytes = max_document_bytes
        self._parquet = ParquetReader(index.field)

    def name_of(self, place: Place) -> str:
        """The place for messages: `path`, `path:line` or `path:row N`."""
        path = self._index.files[place.file].path
        if not place.line:
            return path
        between = ":row " if self._index.format == "parquet" else ":"
        return f"{path}{between}{place.line}"

    def complaint(self, place: Place, reason: object) -> str:
        """The message about a document that cannot be used."""
        return f"{self.name_of(place)} {reason}; correct it, or set data.on_bad=skip"

    def read(self, block: int) -> Iterator[Document | BadDocument]:
        """Documents of `block` in source order. Raises DataError where a file has changed."""
        read = {"text": self._text, "jsonl": self._json_lines, "parquet": self._rows}
        for span in self._index.blocks.spans_of(block):
            yield from read[self._index.format](span)

    def _text(self, span: np.void) -> Iterator[Document | BadDocument]:
        place = Place(int(span["file"]), 0)
        yield _text_document(place, self._bytes_of(span))

    def _json_lines(self, span: np.void) -> Iterator[Document | BadDocument]:
        lines = self._bytes_of(span).split(b"\n")
        for number, line in enumerate(lines, int(span["first"])):
            if line and not line.isspace():
                yield self._record(Place(int(span["file"]), number), line)

    def _record(self, place: Place, line: bytes) -> Document | BadDocument:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            return BadDocument(place, f"is not JSON ({error})")
        if not isinstance(record, dict):
            return BadDocument(place, f"is a JSON {type(record).__name__}, not an object")
        field = self._index.field
        if field not in record:
            fields = ", ".join(sorted(record)[:8]) or "none"
            return BadDocument(place, f"has no field {field!r} (fields: {fields})")
        return Document(place, record[field])

    def _rows(self, span: np.void) -> Iterator[Document | BadDocument]:
        file = self._index.files[int(span["file"])]
        values = list(self._parquet.rows(file.path, int(span["start"]), int(span["stop"])))
        try:
            _require_unchanged(file, os.stat(file.path))
        except OSError as error:
            raise DataError(f"{file.path} cannot be read: {error.strerror}") from error
        for number, value in enumerate(values, int(span["first"])):
            yield self._row(Place(int(span["file"]), number), value)

    def _row(self, place: Place, value: pa.Scalar) -> Document | BadDocument:
        size_bytes = scalar_bytes(value)
        if size_bytes > self._max_document_bytes:
            limit = f"data.max_document_bytes={self._max_document_bytes:,}"
            return BadDocument(place, f"has {size_bytes:,} bytes, over {limit}")
        try:
            content = value.as_py()
        except UnicodeDecodeError as error:
            return BadDocument(place, f"is not UTF-8 ({error.reason})")
        if isinstance(content, bytes):
            return _text_document(place, content)
        return Document(place, content)

    def _bytes_of(self, span: np.void) -> bytes:
        file = self._index.files[int(span["file"])]
        start, stop = int(span["start"]), int(span["stop"])
        try:
            with open(file.path, "rb") as opened:
                opened.seek(start)
                data = opened.read(stop - start)
                _require_unchanged(file, os.fstat(opened.fileno()))
        except OSError as error:
            raise DataError(f"{file.path} cannot be read: {error.strerror}") from error
        return data


def _require_unchanged(file: SourceFile, status: os.stat_result) -> None:
    # Asked after reading: new content must not be kept under the fingerprint of the old.
    if (status.st_size, status.st_mtime_ns) != (file.size_bytes, file.mtime_ns):
        raise DataError(f"{file.path} changed while it was used; start the run again")


def _text_document(place: Place, data: bytes) -> Document | BadDocument:
    if b"\0" in data:
        return BadDocument(place, "is binary (it holds a zero byte)")
    try:
        return Document(place, data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return BadDocument(place, f"is not UTF-8 ({error.reason} at byte {error.start})")
