"""Where everything lies in a board's file.

    header | two copies of the state | counters | last sequences | steps | names | communicators |
    entries | times

Numbers are native: a board is read on the host that writes it. Records end in a checksum of what
precedes it, so that half-written ones are known whatever order the writer's stores become visible
in. What changes alone (counters, sequences, times) is one aligned 8-byte cell each, and those are
written at once.
"""

import struct
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass

MAGIC = b"BRAIDTLM"
VERSION = 2
CELL_BYTES = 8

HEADER = struct.Struct("=8sIIIIIiQ")
"""Magic, version, slots, communicators, names, steps, rank, process."""

STATE = struct.Struct("=QQQQQdd")
"""Serial, generation, name of the phase, step, round, when the phase began, work of the step."""

STEP = struct.Struct("=QQddddd")
"""Serial, step, when it ended, own compute, time waited, wait for the batch, work."""

ENTRY = struct.Struct("=QQQdIHH")
"""Number, sequence, bytes, when enqueued, communicator, kind, phase."""

CHECKSUM = struct.Struct("=I")
LENGTH = struct.Struct("=H")

HEADER_STRIDE = 64
STATE_STRIDE = 64
STEP_STRIDE = 64
ENTRY_STRIDE = 48
NAME_STRIDE = 64
COMMUNICATOR_STRIDE = 256

HEARTBEAT, UNRECORDED = 0, 1
COUNTERS = 8
"""Cells, of which two are used."""

STARTED, AWAITED, ENDED = 0, 1, 2
TIMES = 3
"""Cells per entry."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """How much a board holds."""

    slots: int = 1024
    """Collectives. Those that have not ended are kept longer than those that have."""

    communicators: int = 256
    names: int = 128
    """Kinds of collectives and phases together."""

    steps: int = 64

    def __post_init__(self) -> None:
        for name, number in asdict(self).items():
            if not 1 <= number < 2**16:
                raise ValueError(f"{name}={number}, but a board holds 1 to {2**16 - 1} of each")

    @property
    def state(self) -> int:
        """Offset in bytes; so are the next ones."""
        return HEADER_STRIDE

    @property
    def counters(self) -> int:
        return self.state + 2 * STATE_STRIDE

    @property
    def sequences(self) -> int:
        return self.counters + COUNTERS * CELL_BYTES

    @property
    def step_rows(self) -> int:
        return self.sequences + self.communicators * CELL_BYTES

    @property
    def name_rows(self) -> int:
        return self.step_rows + self.steps * STEP_STRIDE

    @property
    def communicator_rows(self) -> int:
        return self.name_rows + self.names * NAME_STRIDE

    @property
    def entries(self) -> int:
        return self.communicator_rows + self.communicators * COMMUNICATOR_STRIDE

    @property
    def times(self) -> int:
        return self.entries + self.slots * ENTRY_STRIDE

    @property
    def total_bytes(self) -> int:
        return self.times + self.slots * TIMES * CELL_BYTES


def sealed(body: bytes) -> bytes:
    """With its checksum behind it."""
    return body + CHECKSUM.pack(zlib.crc32(body))


def unsealed(raw: bytes, size: int) -> bytes | None:
    """The first `size` bytes; None where they are not what was written, or nothing was."""
    body = raw[:size]
    (checksum,) = CHECKSUM.unpack_from(raw, size)
    return body if zlib.crc32(body) == checksum else None


def text_row(text: str, stride: int) -> bytes | None:
    """A row of a table of texts; None where the text is too long for it."""
    encoded = text.encode()
    room_bytes = stride - LENGTH.size - CHECKSUM.size
    if len(encoded) > room_bytes:
        return None
    return sealed(LENGTH.pack(len(encoded)) + encoded.ljust(room_bytes, b"\0"))


def text_of(raw: bytes) -> str | None:
    """What `text_row` put into a row."""
    body = unsealed(raw, len(raw) - CHECKSUM.size)
    if body is None:
        return None
    (length,) = LENGTH.unpack_from(body)
    return body[LENGTH.size : LENGTH.size + length].decode()


def compact_ranks(ranks: Iterable[int]) -> str:
    """Ranks as `first:last:stride` runs, such as `0:6:2,7:7:1`."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and runs[-1][0] == runs[-1][1]:
            stride = rank - runs[-1][0]
            if stride > 0:
                runs[-1][1:] = [rank, stride]
                continue
        elif runs and rank == runs[-1][1] + runs[-1][2]:
            runs[-1][1] = rank
            continue
        runs.append([rank, rank, 1])
    return ",".join(":".join(map(str, run)) for run in runs)


def spread_ranks(text: str) -> tuple[int, ...]:
    """The ranks that `compact_ranks` wrote."""
    found: list[int] = []
    for run in filter(None, text.split(",")):
        first, last, stride = map(int, run.split(":"))
        found.extend(range(first, last + 1, stride))
    return tuple(found)
