"""Read the board of another process, which may be running, stopped or dead."""

import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

from comms.telemetry import layout
from comms.telemetry.layout import AWAITED, CELL_BYTES, ENDED, STARTED, TIMES, Sizes
from comms.telemetry.records import CollectiveRecord, RankReading

_READS = 8


class BoardError(ValueError):
    """A file is not a board that this code can read."""


def read_board(path: Path) -> RankReading:
    """What the rank last wrote. Takes no lock and waits for nobody.

    Raises FileNotFoundError where there is no file, BoardError where it is no board, was made by
    another version, or is not whole.
    """
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _Reader(path, file).read()
    finally:
        os.close(file)


class _Reader:
    def __init__(self, path: Path, file: int) -> None:
        self._path = path
        self._file = file
        self._sizes, self._rank, self._pid = self._header()
        found_bytes = os.fstat(file).st_size
        if found_bytes < self._sizes.total_bytes:
            raise BoardError(
                f"{path} has {found_bytes} bytes, but its header speaks of "
                f"{self._sizes.total_bytes}: it was cut off; delete it, its rank makes a new one"
            )

    def read(self) -> RankReading:
        """Everything."""
        sizes = self._sizes
        entries = self._entries()
        names = self._texts(sizes.name_rows, sizes.names, layout.NAME_STRIDE)
        lines = self._texts(
            sizes.communicator_rows, sizes.communicators, layout.COMMUNICATOR_STRIDE
        )
        communicators = {n: text.partition("\n")[0] for n, text in lines.items()}
        records = [
            record
            for raw, times in entries
            if (record := _record(raw, times, communicators, names)) is not None
        ]
        _, generation, phase, step, round_, since_s, work = self._state()
        steps = self._steps()
        return RankReading(
            rank=self._rank,
            pid=self._pid,
            generation=generation,
            heartbeat_s=self._cells(sizes.counters, layout.COUNTERS, "d")[layout.HEARTBEAT],
            phase=names.get(phase, ""),
            phase_since_s=since_s,
            step=step,
            round=round_,
            last_sequence=self._last_sequences(communicators),
            members={
                text.partition("\n")[0]: layout.spread_ranks(text.partition("\n")[2])
                for text in lines.values()
            },
            pending=tuple(r for r in records if r.ended_s is None),
            recent=tuple(r for r in records if r.ended_s is not None),
            steps=tuple(row[1] for row in steps),
            step_ended_s=tuple(row[2] for row in steps),
            compute_s=tuple(row[3] for row in steps),
            waited_s=tuple(row[4] for row in steps),
            data_s=tuple(row[5] for row in steps),
            work=tuple(row[6] for row in steps),
            step_work=work,
            unrecorded=self._cells(sizes.counters, layout.COUNTERS, "Q")[layout.UNRECORDED],
        )

    def _header(self) -> tuple[Sizes, int, int]:
        raw = os.pread(self._file, layout.HEADER_STRIDE, 0)
        if raw[: len(layout.MAGIC)] != layout.MAGIC:
            raise BoardError(
                f"{self._path} begins with {raw[: len(layout.MAGIC)]!r}, not with "
                f"{layout.MAGIC!r}: it is no board of a rank; pass the path of one"
            )
        body = None
        if len(raw) == layout.HEADER_STRIDE:
            body = layout.unsealed(raw, layout.HEADER.size)
        if body is None:
            raise BoardError(
                f"the header of {self._path} is not whole; delete it, its rank makes a new one"
            )
        _, version, slots, communicators, names, steps, rank, pid = layout.HEADER.unpack(body)
        if version != layout.VERSION:
            raise BoardError(
                f"{self._path} is of version {version}, this code reads version "
                f"{layout.VERSION}; run the reader from the installation that the rank runs from"
            )
        sizes = Sizes(slots=slots, communicators=communicators, names=names, steps=steps)
        return sizes, rank, pid

    def _entries(self) -> list[tuple[bytes, tuple[float, ...]]]:
        """Whole entries with their times, in the order of their numbers."""
        sizes = self._sizes
        before = os.pread(self._file, sizes.slots * layout.ENTRY_STRIDE, sizes.entries)
        times = self._cells(sizes.times, sizes.slots * TIMES, "d")
        after = os.pread(self._file, sizes.slots * layout.ENTRY_STRIDE, sizes.entries)
        found = []
        for slot in range(sizes.slots):
            part = slice(slot * layout.ENTRY_STRIDE, (slot + 1) * layout.ENTRY_STRIDE)
            # Times lie apart: they belong to the entry only if it was there before and after.
            if before[part] != after[part]:
                continue
            body = layout.unsealed(before[part], layout.ENTRY.size)
            if body is not None:
                found.append((body, times[slot * TIMES : (slot + 1) * TIMES]))
        return sorted(found, key=lambda entry: layout.ENTRY.unpack(entry[0])[0])

    def _state(self) -> tuple[int, int, int, int, int, float, float]:
        copies = self._rows(self._sizes.state, 2, layout.STATE_STRIDE, layout.STATE)
        return max(copies, default=(0, 0, -1, 0, 0, 0.0, 0.0))

    def _steps(self) -> list[tuple[int, int, float, float, float, float, float]]:
        sizes = self._sizes
        return sorted(self._rows(sizes.step_rows, sizes.steps, layout.STEP_STRIDE, layout.STEP))

    def _last_sequences(self, communicators: Mapping[int, str]) -> dict[str, int]:
        last = self._cells(self._sizes.sequences, self._sizes.communicators, "Q")
        return {name: last[number] for number, name in communicators.items()}

    def _texts(self, at: int, rows: int, stride: int) -> dict[int, str]:
        raw = os.pread(self._file, rows * stride, at)
        texts = {n: layout.text_of(raw[n * stride : (n + 1) * stride]) for n in range(rows)}
        return {number: text for number, text in texts.items() if text is not None}

    def _rows(self, at: int, rows: int, stride: int, form: struct.Struct) -> Iterator:
        raw = os.pread(self._file, rows * stride, at)
        for start in range(0, rows * stride, stride):
            body = layout.unsealed(raw[start : start + stride], form.size)
            if body is not None:
                yield form.unpack(body)

    def _cells(self, at: int, cells: int, code: str) -> tuple:
        raw = os.pread(self._file, cells * CELL_BYTES, at)
        for _ in range(_READS):
            # The kernel need not copy a cell at once: it is whole where two copies agree.
            earlier, raw = raw, os.pread(self._file, cells * CELL_BYTES, at)
            if raw == earlier:
                break
        return struct.unpack(f"={cells}{code}", raw)


def _record(
    raw: bytes,
    times: tuple[float, ...],
    communicators: Mapping[int, str],
    names: Mapping[int, str],
) -> CollectiveRecord | None:
    _, sequence, sent_bytes, enqueued_s, communicator, kind, phase = layout.ENTRY.unpack(raw)
    if communicator not in communicators:
        return None
    return CollectiveRecord(
        communicator=communicators[communicator],
        sequence=sequence,
        kind=names.get(kind, ""),
        sent_bytes=sent_bytes,
        phase=names.get(phase, ""),
        enqueued_s=enqueued_s,
        started_s=times[STARTED] or None,
        ended_s=times[ENDED] or None,
        awaited_s=times[AWAITED] or None,
    )
