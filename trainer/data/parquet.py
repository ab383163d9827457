"""Rows of Parquet files by row group.

A Parquet file says how many bytes a row group's column holds, not how many each row does: blocks
are cut by the mean, and a row's size is checked after Arrow has read it, before it becomes text.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from trainer.errors import DataError

KEPT_BYTES = 256 * 1024 * 1024
"""Decoded row groups kept: a block is often smaller than the row group it is cut from."""


@dataclass(frozen=True)
class RowGroup:
    """Where a row group lies in its file."""

    number: int
    first_row: int
    rows: int
    field_bytes: int
    """Uncompressed bytes of the field in it."""


def row_groups(path: str, field: str) -> list[RowGroup]:
    """Row groups that are not empty. Raises DataError where file or field is not there."""
    metadata = _open(path, field).metadata
    groups, first_row = [], 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        chunks = [group.column(i) for i in range(group.num_columns)]
        field_bytes = sum(
            chunk.total_uncompressed_size
            for chunk in chunks
            if chunk.path_in_schema.split(".")[0] == field
        )
        if group.num_rows:
            groups.append(RowGroup(number, first_row, group.num_rows, max(field_bytes, 1)))
        first_row += group.num_rows
    return groups


class ParquetReader:
    """Reads one field, keeping the row groups it decoded last."""

    def __init__(self, field: str) -> None:
        self._field = field
        self._groups: dict[str, list[RowGroup]] = {}
        self._columns: OrderedDict[tuple[str, int], pa.ChunkedArray] = OrderedDict()

    def rows(self, path: str, start: int, stop: int) -> Iterator[pa.Scalar]:
        """The field of rows `start` to `stop`, not yet turned into Python values."""
        if path not in self._groups:
            self._groups[path] = row_groups(path, self._field)
        for group in self._groups[path]:
            first = max(start - group.first_row, 0)
            last = min(stop - group.first_row, group.rows)
            if first < last:
                yield from self._column(path, group.number).slice(first, last - first)

    def _column(self, path: str, number: int) -> pa.ChunkedArray:
        key = (path, number)
        if key not in self._columns:
            file = _open(path, self._field)
            try:
                self._columns[key] = file.read_row_group(number, columns=[self._field]).column(0)
            except (pa.ArrowInvalid, OSError) as error:
                raise DataError(
                    f"{path}: row group {number} cannot be read ({error}); replace the file"
                ) from error
            self._forget()
        self._columns.move_to_end(key)
        return self._columns[key]

    def _forget(self) -> None:
        while len(self._columns) > 1 and self._held_bytes() > KEPT_BYTES:
            self._columns.popitem(last=False)

    def _held_bytes(self) -> int:
        return sum(column.nbytes for column in self._columns.values())


def scalar_bytes(value: pa.Scalar) -> int:
    """Size of a string or binary field without copying it; nested fields count as 0."""
    if isinstance(value, pa.StringScalar | pa.LargeStringScalar | pa.BinaryScalar):
        buffer = value.as_buffer()
        return 0 if buffer is None else buffer.size
    return 0


def _open(path: str, field: str) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(path, memory_map=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}") from error
    names = file.schema_arrow.names
    if field not in names:
        raise DataError(
            f"{path} has no column {field!r}, only {', '.join(names)}; name the column in "
            "data.text_field (data.messages_field for chat)"
        )
    return file
