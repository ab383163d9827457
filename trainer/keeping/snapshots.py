"""Snapshots of this rank's share of the state, in host memory that outlives the process.

In any training loop, with `state` a dict of tensors that the optimizer changes in place:

    snapshots.settle(); optimizer.step()
    snapshots.capture(step, state, {"step": step})

The copy runs on a thread while the next step computes. `settle` belongs before whatever tells ranks
that all are ready for the update, such as a vote: once a rank updates, every rank's last snapshot
is then whole, and the one after it overwrites an older one. So whenever processes die, one step is
whole on all of them.

Guarantees, each asserted in tests/trainer/keeping/test_snapshots.py:
- what is kept is the state at the moment of `capture`, if nothing changes it before `settle`;
- a process that dies at any moment leaves its last settled snapshot whole, and one before it;
- snapshots fail alone: training goes on, and `failure` says why there are no more.
"""

import shutil
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from trainer.checkpoint.agreement import describe
from trainer.checkpoint.share import Share, State, local_part
from trainer.keeping.copying import Part, copy_parts, parts_between
from trainer.keeping.folder import make_folder, rank_folder, remove_older
from trainer.keeping.header import WORD_BYTES, aligned, reduced
from trainer.keeping.hold import RESERVED_SLOTS, Hold, Rotation, read_hold
from trainer.keeping.loose import (
    NOTHING,
    Loose,
    PlacedLoose,
    fetched,
    place_loose,
    ready_event,
)
from trainer.keeping.pieces import encode_description, encode_pieces, payload_bytes, place_pieces
from trainer.keeping.slot import Owner, Slot
from trainer.keeping.staging import DeviceStaging

_FAILURES = (OSError, RuntimeError, ValueError, MemoryError)

_Parts = tuple[tuple[int, ...], list[Part]]
"""Addresses of the tensors, and how they get into a slot."""


@dataclass
class _Known:
    """Of one slot: what the snapshot before found out about its loose tensors."""

    marks: Hashable
    loose: PlacedLoose
    parts: list[Part]
    pieces_json: str


class Snapshots:
    """Writes one share after another, each over the oldest of its slots.

    `share` says what this rank writes (`trainer.checkpoint.share.plan_share`); a description of the
    run, as JSON, and loose tensors make slots larger where `reserve_bytes` do not hold them.
    """

    def __init__(
        self,
        folder: Path,
        owner: Owner,
        share: Share,
        *,
        slots: int,
        meta: dict[str, Any],
        reserve_bytes: int = 0,
        replicated: bool = False,
    ) -> None:
        """`replicated` makes slots for steps that are copied to other hosts. Raises OSError where
        there is no room or the folder is another user's."""
        self._folder, self._generation, self._replicated = folder, owner.generation, replicated
        self._share, self._placed = share, place_pieces(share)
        self._names = {place.piece.name for place in self._placed}
        self._pieces_json = encode_pieces(self._placed, share.tensors)
        described = len(encode_description(meta, self._pieces_json))
        self._place = _place(folder, owner)
        self._rotation = Rotation(slots, RESERVED_SLOTS if replicated else 0)
        size = payload_bytes(self._placed) + aligned(reserve_bytes, WORD_BYTES)
        self._slots = _slots(self._place, owner, self._rotation, described, size)
        self._parts: list[_Parts] = [((), []) for _ in self._slots]
        self._known: list[_Known] = [self._nothing_loose() for _ in self._slots]
        self._staging = DeviceStaging(self._placed)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="snapshots")
        self._running: Future[None] | None = None
        self._taken = 0
        self.failure: str | None = None
        """Why no more snapshots are made."""

    @property
    def taken(self) -> int:
        """Snapshots begun so far."""
        return self._taken

    def capture(
        self,
        step: int,
        state: State,
        meta: dict[str, Any],
        *,
        late: Callable[[], State] = dict,
        loose: Loose | None = None,
    ) -> None:
        """Begin to copy the state, and return. `settle` must have been called since the last time.

        `late` gives the tensors that are not in `state`; it is called on the thread that copies.
        `loose` is kept beside what the share plans, first of all.
        """
        assert self._running is None, "settle comes before the next snapshot"
        if self.failure is not None:
            if loose is not None:
                loose.kept.set()
            return
        slot = self._rotation.next(step, self._hold())
        self._taken += 1
        sources = {
            name: local_part(tensor) for name, tensor in state.items() if name in self._names
        }
        self._staging.begin(sources)
        ready = None if loose is None else ready_event(loose.device)
        self._running = self._thread.submit(
            self._copy, slot, step, sources, meta, late, loose, ready
        )

    def settle(self) -> float:
        """Wait until the snapshot under way is whole, and let the device pass its copies; seconds
        waited. What changes the state comes after it."""
        if self._running is None:
            return 0.0
        running, self._running = self._running, None
        begin_s = perf_counter()
        try:
            running.result()
        except _FAILURES as error:
            self.failure = describe(error)
        return perf_counter() - begin_s

    def remove_older(self) -> None:
        """Delete, on the thread, what earlier starts left on this host, but for the step that other
        hosts have copies of. For one rank per host, once a snapshot of this start is whole on all
        ranks."""
        kept = self._hold().kept
        self._thread.submit(remove_older, self._folder, self._generation, but=kept)

    def _hold(self) -> Hold:
        return read_hold(self._folder) if self._replicated else Hold()

    def _copy(
        self,
        number: int,
        step: int,
        sources: dict[str, Tensor],
        meta: dict[str, Any],
        late: Callable[[], State],
        loose: Loose | None,
        ready: "torch.cuda.Event | None",
    ) -> None:
        slot = self._slots[number]
        slot.begin()
        with torch.no_grad():
            try:
                checksum, description = self._copy_loose(number, meta, loose, ready)
            finally:
                if loose is not None:
                    loose.kept.set()
            moving = {n: local_part(t) for n, t in late().items() if n in self._names}
            tensors = self._staging.host_sources({**sources, **moving})
            # Tensors made for this snapshot alone must not be held until the next.
            parts = self._parts_of(number, tensors, keep=not moving)
            checksum = reduced(checksum + copy_parts(parts))
        placed = (*self._placed, *self._known[number].loose.placed)
        slot.finish(step, description, checksum, payload_bytes(placed))

    def _copy_loose(
        self,
        number: int,
        meta: dict[str, Any],
        loose: Loose | None,
        ready: "torch.cuda.Event | None",
    ) -> tuple[int, bytes]:
        """Their part of the checksum, and the description of all."""
        slot, known = self._slots[number], self._known[number]
        if loose is None:
            known = self._nothing_loose()
        elif known.marks != loose.marks:
            placed = place_loose(loose.tensors(), payload_bytes(self._placed))
            entries = {**self._share.tensors, **placed.entries}
            pieces = encode_pieces((*self._placed, *placed.placed), entries)
            known = _Known(loose.marks, placed, [], pieces)
        description = encode_description(meta, known.pieces_json)
        size = payload_bytes((*self._placed, *known.loose.placed))
        if slot.fit(description_bytes=len(description), payload_bytes=size):
            self._parts[number], known.parts = ((), []), []
        if not known.parts or ready is not None:
            sources = fetched(known.loose.sources, ready)
            known.parts = parts_between(sources, known.loose.placed, slot)
        self._known[number] = known
        checksum = copy_parts(known.parts)
        if ready is not None:
            known.parts = []
        return checksum, description

    def _nothing_loose(self) -> _Known:
        return _Known(None, NOTHING, [], self._pieces_json)

    def _parts_of(self, number: int, tensors: Sequence[Tensor], *, keep: bool) -> list[Part]:
        """The same as for the snapshot before in this slot, while tensors stay where they are."""
        places = tuple(tensor.data_ptr() for tensor in tensors)
        known, parts = self._parts[number]
        if known != places or not keep:
            parts = parts_between(tensors, self._placed, self._slots[number])
        self._parts[number] = (places, parts) if keep else ((), [])
        return parts

    def remove(self) -> None:
        """Delete this start's files of this rank. Called after `close`."""
        shutil.rmtree(self._place, ignore_errors=True)

    def close(self) -> None:
        """Let the snapshot under way become whole, and end the thread."""
        self.settle()
        self._thread.shutdown()


def _place(folder: Path, owner: Owner) -> Path:
    """The owner's folder, which is made."""
    place = rank_folder(folder, generation=owner.generation, rank=owner.rank, ranks=owner.ranks)
    make_folder(folder, place)
    return place


def _slots(place: Path, owner: Owner, rotation: Rotation, described: int, size: int) -> list[Slot]:
    """Empty slots, all of them or none."""
    try:
        return [
            Slot(place / f"slot-{n}", owner, description_bytes=described, payload_bytes=size)
            for n in range(len(rotation.steps))
        ]
    except OSError:
        shutil.rmtree(place, ignore_errors=True)
        raise
