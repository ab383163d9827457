"""A file in which one rank keeps what it does, for others to read while it is stuck or dead.

Guarantees, each asserted in tests/comms/telemetry/test_board.py:
- writing takes no lock, and a reader never keeps the writer waiting;
- a reader gets every record as it was written, or not at all;
- a writer that is stopped or killed at any instruction leaves the rest readable;
- records that have not ended stay, as long as the ring holds others that have;
- the file takes its room when it is made, so that no later write can fail.
"""

import mmap
import os
from itertools import count
from pathlib import Path
from typing import Any
from zlib import crc32

from comms.telemetry import layout
from comms.telemetry.layout import AWAITED, CELL_BYTES, ENDED, TIMES, Sizes

_ENTRY_CELLS = layout.ENTRY_STRIDE // CELL_BYTES
_ENTRY_BYTES = layout.ENTRY.size + layout.CHECKSUM.size
_pack, _pack_checksum = layout.ENTRY.pack, layout.CHECKSUM.pack

_LOOK_PAST = 16
"""Slots whose collective has not ended that a new one passes over before it takes one."""


class Board:
    """The writing side. Threads may put records at the same time; state and steps are written by
    one thread. Numbers of names and communicators are given by the caller, from 0."""

    def __init__(self, mapping: mmap.mmap, sizes: Sizes) -> None:
        self._map = mapping
        self._sizes = sizes
        self._cells: Any = memoryview(mapping).cast("Q")
        self._times: Any = memoryview(mapping).cast("d")
        self._slots = sizes.slots
        self._entry_cell = sizes.entries // CELL_BYTES
        self._times_cell = sizes.times // CELL_BYTES
        self._sequence_cell = sizes.sequences // CELL_BYTES
        self._counter_cell = sizes.counters // CELL_BYTES
        self._numbers = count(1)
        self._states = count(1)
        self._steps = count(1)

    @classmethod
    def create(cls, path: Path, *, rank: int, pid: int, sizes: Sizes | None = None) -> "Board":
        """Make the file, in place of one that may be there. Raises OSError where that fails, also
        for want of room."""
        sizes = Sizes() if sizes is None else sizes
        draft = path.with_name(f".{path.name}.{pid}")
        file = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            # A hole would be filled at its first write, which kills the process on a full tmpfs.
            os.posix_fallocate(file, 0, sizes.total_bytes)
            board = cls(mmap.mmap(file, sizes.total_bytes), sizes)
            header = layout.HEADER.pack(
                *(layout.MAGIC, layout.VERSION, sizes.slots, sizes.communicators),
                *(sizes.names, sizes.steps, rank, pid),
            )
            board._write(0, layout.sealed(header))
            os.replace(draft, path)
        except OSError:
            draft.unlink(missing_ok=True)
            raise
        finally:
            os.close(file)
        return board

    def put(
        self,
        communicator: int,
        sequence: int,
        kind: int,
        sent_bytes: int,
        phase: int,
        now_s: float,
        started: bool,
    ) -> int:
        """Write a collective that is asked for now; its number, by which it is changed."""
        cells, slots = self._cells, self._slots
        number = next(self._numbers)
        last = number + _LOOK_PAST
        while True:
            slot = number % slots
            entry = self._entry_cell + slot * _ENTRY_CELLS
            times = self._times_cell + slot * TIMES
            # Cells of times are looked at as integers, which is quicker: never has no bit set.
            if not cells[entry] or cells[times + ENDED] or number >= last:
                break
            number = next(self._numbers)
        # First what was there ceases to be, so that nobody reads it with the times of this one.
        cells[entry] = 0
        self._times[times] = now_s if started else 0.0
        cells[times + AWAITED] = cells[times + ENDED] = 0
        body = _pack(number, sequence, sent_bytes, now_s, communicator, kind, phase)
        at = entry * CELL_BYTES
        self._map[at : at + _ENTRY_BYTES] = body + _pack_checksum(crc32(body))
        cells[self._sequence_cell + communicator] = sequence
        return number

    def stamp(self, number: int, which: int, now_s: float) -> None:
        """Say that a collective was STARTED, AWAITED or ENDED now. 0, and one whose slot has
        been taken by another, are left alone."""
        slot = number % self._slots
        if number and self._cells[self._entry_cell + slot * _ENTRY_CELLS] == number:
            self._times[self._times_cell + slot * TIMES + which] = now_s

    def beat(self, now_s: float) -> None:
        """Say that the process runs."""
        self._times[self._counter_cell + layout.HEARTBEAT] = now_s

    def count_unrecorded(self) -> None:
        """Count a collective that could not be put."""
        self._cells[self._counter_cell + layout.UNRECORDED] += 1

    def set_state(
        self, *, generation: int, phase: int, step: int, round_: int, since_s: float, work: float
    ) -> None:
        """Write where the rank is, over the older of two copies."""
        serial = next(self._states)
        body = layout.STATE.pack(serial, generation, phase, step, round_, since_s, work)
        self._write(self._sizes.state + serial % 2 * layout.STATE_STRIDE, layout.sealed(body))

    def add_step(
        self,
        step: int,
        *,
        ended_s: float,
        compute_s: float,
        waited_s: float,
        data_s: float,
        work: float,
    ) -> None:
        """Write a step that is over, over the oldest."""
        serial = next(self._steps)
        row = serial % self._sizes.steps
        body = layout.STEP.pack(serial, step, ended_s, compute_s, waited_s, data_s, work)
        self._write(self._sizes.step_rows + row * layout.STEP_STRIDE, layout.sealed(body))

    def set_name(self, number: int, text: str) -> bool:
        """Name a kind or phase; False where there is no room."""
        row = layout.text_row(text, layout.NAME_STRIDE)
        if row is None or number >= self._sizes.names:
            return False
        self._write(self._sizes.name_rows + number * layout.NAME_STRIDE, row)
        return True

    def set_communicator(self, number: int, name: str, ranks: str) -> bool:
        """Name a communicator, with its ranks where they fit; False where there is no room."""
        stride = layout.COMMUNICATOR_STRIDE
        row = layout.text_row(f"{name}\n{ranks}", stride) or layout.text_row(f"{name}\n", stride)
        if row is None or number >= self._sizes.communicators:
            return False
        self._cells[self._sequence_cell + number] = 0
        self._write(self._sizes.communicator_rows + number * stride, row)
        return True

    def forget(self) -> None:
        """Drop all collectives and communicators: ranks meet anew."""
        sizes = self._sizes
        for slot in range(sizes.slots):
            self._cells[self._entry_cell + slot * _ENTRY_CELLS] = 0
        stride = layout.COMMUNICATOR_STRIDE
        self._write(sizes.communicator_rows, bytes(sizes.communicators * stride))
        self._write(sizes.sequences, bytes(sizes.communicators * CELL_BYTES))

    def close(self) -> None:
        """Let go of the file, which stays. Nothing may be written any more."""
        self._cells.release()
        self._times.release()
        self._map.close()

    def _write(self, at: int, raw: bytes) -> None:
        self._map[at : at + len(raw)] = raw
