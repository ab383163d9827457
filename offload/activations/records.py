"""What stands for a saved tensor while its bytes are away."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import TypeAlias

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from offload.activations.stores import Pending
from offload.activations.tensors import VersionProbe, View
from offload.disk.extents import Extent


@dataclass(eq=False, slots=True, weakref_slot=True)
class Record:
    """One storage between forward and backward, however many saved tensors are views of it."""

    number: int
    """Records are numbered in the order in which forward saved them."""

    num_bytes: int
    device: torch.device
    storage: StorageWeakRef
    """Names the storage: its address is not used again while this exists."""

    probe: VersionProbe
    memory_N: Tensor | None
    """The storage's bytes while it is in memory; handed back if backward comes first."""

    stored_bytes: int
    """How many of the first bytes the tier holds."""

    fill: Callable[[], None] | None = None
    """Recomputes the bytes that the tier does not hold."""

    block: int | None = None
    slot: int | None = None
    """The run of a decoder block that saved it, and its place among that run's records."""

    place: Extent | None = None
    storing: Pending | None = None
    restored_N: Tensor | None = None
    loading: Pending | None = None
    filled: bool = False
    checksum: Tensor | None = None
    handles: int = 0
    """Saved tensors that are views of the storage."""

    waiting: int = 0
    """Of these, the ones that backward did not ask for since the bytes last came back."""

    round: int = 0
    """Counts the times that all handles were asked for."""

    away: bool = False
    """Whether its memory was let go and nothing has come back yet."""

    @property
    def is_whole(self) -> bool:
        """Whether the tier holds all of it."""
        return self.stored_bytes >= self.num_bytes

    @property
    def in_flight(self) -> bool:
        """Whether the tier may still be reading the storage."""
        return self.storing is not None and self.memory_N is not None


class Handle:
    """What autograd keeps in place of a tensor. Its end is noted, whichever thread it comes in."""

    __slots__ = ("_dropped", "asked_in", "record", "view")

    def __init__(self, record: Record, view: View, dropped: "Graveyard") -> None:
        self.record = record
        self.view = view
        self.asked_in = -1
        self._dropped = dropped
        record.handles += 1
        record.waiting += 1

    def __del__(self) -> None:
        self._dropped.add(Dropped(self.record, self.asked_in))


@dataclass(frozen=True, slots=True)
class Dropped:
    """A handle that is no more."""

    record: Record
    asked_in: int


class Graveyard:
    """Handles that are no more, until somebody looks.

    The garbage collector adds to it at any instruction of any thread, inside the swap's own code
    too, so adding does nothing else.
    """

    def __init__(self) -> None:
        self._dropped: deque[Dropped] = deque()

    def add(self, dropped: Dropped) -> None:
        """Note the end of a handle."""
        self._dropped.append(dropped)

    def take(self) -> Iterator[Dropped]:
        """The noted ends, once each."""
        while self._dropped:
            yield self._dropped.popleft()


class Kept:
    """A tensor that stays in memory, with the version it was saved in."""

    __slots__ = ("_tensor", "_version")

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._version = tensor._version

    def tensor(self) -> Tensor:
        """The tensor. Raises RuntimeError if it was changed since."""
        if self._tensor._version != self._version:
            raise RuntimeError(changed_message(self._tensor.shape, self._tensor.dtype))
        return self._tensor


Packed: TypeAlias = Handle | Kept


def checksum(bytes_N: Tensor) -> Tensor:
    """Sum of the whole 64-bit words; wraps around."""
    return bytes_N[: bytes_N.numel() // 8 * 8].view(torch.int64).sum()


def changed_message(shape: torch.Size, dtype: torch.dtype) -> str:
    """Why backward cannot go on, and what to do."""
    return (
        f"a saved {dtype} tensor of shape {tuple(shape)} was changed in place before backward "
        "could use it; make the operation out of place, or clone the tensor first"
    )


@dataclass(kw_only=True)
class SwapStats:
    """Of the forwards and backwards since the last reading."""

    stored_bytes: int = 0
    fetched_bytes: int = 0
    forwarded_bytes: int = 0
    """Handed back without a read, because they were still in memory."""

    kept_bytes: int = 0
    """Saved but not moved: too small, or behind the cut-off. Weights are not counted."""

    recomputed_bytes: int = 0
    stall_out_s: float = 0.0
    """Forward waited because too much was on its way out."""

    stall_back_s: float = 0.0
    """Backward waited for bytes. On CUDA the device waits instead, unseen by the host."""

    in_flight_peak_bytes: int = 0
    fetched_peak_bytes: int = 0
    away_bytes: int = 0
    """Now: let go after forward, swapped or to be recomputed, and not back yet."""

    away_peak_bytes: int = 0
    """Most of it at one time: what was saved of memory."""

    def leave(self, record: Record) -> None:
        """The memory of `record` was let go."""
        record.away = True
        self.away_bytes += record.num_bytes
        self.away_peak_bytes = max(self.away_peak_bytes, self.away_bytes)

    def come_back(self, record: Record) -> None:
        """`record` has memory again, or nobody will ask for it."""
        if record.away:
            record.away = False
            self.away_bytes -= record.num_bytes

    def take(self) -> "SwapStats":
        """The figures; counting starts anew."""
        taken = replace(self)
        for figure in fields(self):
            setattr(self, figure.name, figure.default)
        self.away_bytes = self.away_peak_bytes = taken.away_bytes
        return taken


@dataclass(frozen=True, kw_only=True)
class SwapOptions:
    """How an `ActivationSwap` works; results do not depend on it."""

    min_bytes: int = 1 << 20
    """Smaller storages stay: each transfer has its own cost."""

    prefetch_bytes: int = 512 << 20
    """How much is fetched ahead of backward."""

    max_in_flight_bytes: int = 512 << 20
    """How much may wait to leave; forward waits beyond it."""

    cut_off: int | None = None
    """Storages saved from this position of a forward on stay; None moves all."""

    keep_when_full: bool = False
    """Whether what the tier has no room for stays in memory; otherwise it raises."""

    checksums: bool = False
    """Whether bytes are summed on their way out and in: finds a failing disk or driver."""

    def __post_init__(self) -> None:
        for key, value in (
            ("min_bytes", self.min_bytes),
            ("prefetch_bytes", self.prefetch_bytes),
            ("max_in_flight_bytes", self.max_in_flight_bytes),
            ("cut_off", self.cut_off or 0),
        ):
            if value < 0:
                raise ValueError(f"{key} must not be negative, got {value}")
