"""Two static buffers that the tensors of a block return to: even blocks to one, odd to the other.

The first backward shows when each tensor of a block comes and goes; the memory plan turns that into
addresses, and from then on a block's tensors return to them. While block i is in backward, block
i - 1 fills the other buffer (arXiv 2407.12117, section 4.1).

Guarantees, each asserted in tests/offload/activations/test_rounding.py:
- from the second backward of a shape on, all tensors of its blocks return to the buffers, as long
  as no more than two blocks are back at once;
- a buffer that is still in use, or is too small, is not written: the tensor gets memory of its own;
- both buffers together are twice the plan's peak;
- forwards of several batches before the first backward, as in a pipeline, are told apart.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from offload.activations.arena import Arena
from offload.activations.records import Record
from offload.disk.extents import PAGE_BYTES
from offload.disk.files import round_up_to_pages
from offload.memory_plan.program import plan_addresses
from offload.memory_plan.requests import Placement, Request

Shape = tuple[tuple[int, bool], ...]
"""Bytes of each tensor of a block in the order of saving, and whether the tier holds some."""


MAX_PLANS = 64
"""Shapes remembered; where streams differ in length, every step brings new ones."""

MAX_RUNS = 1 << 12
"""Runs of blocks whose backward is awaited; older ones had none."""


@dataclass
class _Run:
    """One forward of a block: what it saved, and when it came and went; a tick is one of these."""

    block: int
    sizes: list[tuple[int, bool]] = field(default_factory=list)
    begins: dict[int, int] = field(default_factory=dict)
    ends: dict[int, int] = field(default_factory=dict)
    ticks: int = 0


class RoundingBuffers:
    """Targets for an `ActivationSwap` whose records belong to blocks. Used under its lock."""

    def __init__(self, *, time_limit_s: float = 2.0) -> None:
        self._time_limit_s = time_limit_s
        self._runs: dict[int, _Run] = {}
        self._count = 0
        self._arenas: list[Arena] = []
        self.plans: dict[Shape, Placement] = {}
        """Addresses by shape of block; fragmentation and lower bound are theirs."""
        self.leased_bytes = 0
        self.missed_bytes = 0

    @property
    def size_bytes(self) -> int:
        """Both buffers."""
        return sum(arena.size_bytes for arena in self._arenas)

    def begin_block(self, block: int) -> int:
        """Forward of `block` begins; a number for this run of it."""
        if len(self._runs) >= MAX_RUNS:
            del self._runs[next(iter(self._runs))]
        self._count += 1
        self._runs[self._count] = _Run(block)
        return self._count

    def saved(self, record: Record) -> None:
        """A record was made; it gets its slot if it belongs to a block."""
        run = self._run_of(record)
        if run is not None:
            record.slot = len(run.sizes)
            run.sizes.append((record.num_bytes, record.stored_bytes > 0))

    def take(self, record: Record) -> Tensor | None:
        """Memory for a record's return, or None."""
        run, slot = self._run_of(record), record.slot
        if run is None or slot is None:
            return None
        run.begins.setdefault(slot, run.ticks)
        run.ticks += 1
        plan = self.plans.get(tuple(run.sizes))
        if plan is None:
            return None
        lent_N = self._arena(run.block, plan.peak_bytes, record.device).lease(
            plan.addresses[str(slot)], round_up_to_pages(record.num_bytes)
        )
        if lent_N is None:
            self.missed_bytes += record.num_bytes
        else:
            self.leased_bytes += record.num_bytes
        return lent_N

    def released(self, record: Record) -> None:
        """Backward has had all views of a record."""
        run, slot = self._run_of(record), record.slot
        if run is None or slot is None:
            return
        run.ends.setdefault(slot, run.ticks)
        run.ticks += 1
        shape = tuple(run.sizes)
        if len(run.ends) < len(shape):
            return
        # A retained graph may ask again; what returns then gets memory of its own.
        self._runs.pop(record.block or 0)
        if shape not in self.plans and len(run.begins) == len(shape):
            if len(self.plans) >= MAX_PLANS:
                del self.plans[next(iter(self.plans))]
            self.plans[shape] = self._plan(shape, run)

    def _run_of(self, record: Record) -> _Run | None:
        return None if record.block is None else self._runs.get(record.block)

    def _plan(self, shape: Shape, lives: _Run) -> Placement:
        requests = []
        for slot, (size, stored) in enumerate(shape):
            # What the tier holds may be fetched ahead, at any time before it is asked for.
            begin = 0 if stored else lives.begins[slot]
            end = max(lives.ends[slot], begin + 1)
            requests.append(Request(name=str(slot), size_bytes=size, begin=begin, end=end))
        return plan_addresses(requests, alignment=PAGE_BYTES, time_limit_s=self._time_limit_s)

    def _arena(self, block: int, size_bytes: int, device: torch.device) -> Arena:
        """The buffer of `block`; both grow when a larger shape comes."""
        if not self._arenas or self._arenas[0].size_bytes < size_bytes:
            self._arenas = [Arena(size_bytes, device) for _ in range(2)]
        return self._arenas[block % 2]
