"""Two static buffers that the tensors of a block return to: even blocks to one, odd to the other.

The first backward shows when each tensor of a block comes and goes; the memory plan turns that into
addresses, and from then on a block's tensors return to them. While block i is in backward, block
i - 1 fills the other buffer (arXiv 2407.12117, section 4.1).

Guarantees, each asserted in tests/offload/activations/test_rounding.py:
- from the second backward of a shape on, all tensors of its blocks return to the buffers, as long
  as no more than two blocks are back at once;
- a buffer that is still in use, or is too small, is not written: the tensor gets memory of its own;
- both buffers together are twice the plan's peak.
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


@dataclass
class _Lives:
    """When the tensors of one block came and went; a tick is one coming or going."""

    begins: dict[int, int] = field(default_factory=dict)
    ends: dict[int, int] = field(default_factory=dict)
    ticks: int = 0


class RoundingBuffers:
    """Targets for an `ActivationSwap` whose records belong to blocks. Used under its lock."""

    def __init__(self, *, time_limit_s: float = 2.0) -> None:
        self._time_limit_s = time_limit_s
        self._blocks: dict[int, list[tuple[int, bool]]] = {}
        self._lives: dict[int, _Lives] = {}
        self._arenas: list[Arena] = []
        self.plans: dict[Shape, Placement] = {}
        """Addresses by shape of block; fragmentation and lower bound are theirs."""
        self.leased_bytes = 0
        self.missed_bytes = 0

    @property
    def size_bytes(self) -> int:
        """Both buffers."""
        return sum(arena.size_bytes for arena in self._arenas)

    def begin_block(self, block: int) -> None:
        """Forward of `block` begins."""
        self._blocks[block] = []
        self._lives[block] = _Lives()

    def saved(self, record: Record) -> None:
        """A record was made; it gets its slot if it belongs to a block."""
        if record.block is not None:
            sizes = self._blocks[record.block]
            record.slot = len(sizes)
            sizes.append((record.num_bytes, record.stored_bytes > 0))

    def take(self, record: Record) -> Tensor | None:
        """Memory for a record's return, or None."""
        block, slot = record.block, record.slot
        if block is None or slot is None:
            return None
        lives = self._lives[block]
        lives.begins.setdefault(slot, lives.ticks)
        lives.ticks += 1
        plan = self.plans.get(tuple(self._blocks[block]))
        if plan is None:
            return None
        lent_N = self._arena(block, plan.peak_bytes, record.device).lease(
            plan.addresses[str(slot)], round_up_to_pages(record.num_bytes)
        )
        if lent_N is None:
            self.missed_bytes += record.num_bytes
        else:
            self.leased_bytes += record.num_bytes
        return lent_N

    def released(self, record: Record) -> None:
        """Backward has had all views of a record."""
        block, slot = record.block, record.slot
        if block is None or slot is None:
            return
        lives, sizes = self._lives[block], self._blocks[block]
        lives.ends.setdefault(slot, lives.ticks)
        lives.ticks += 1
        shape = tuple(sizes)
        if shape not in self.plans and len(lives.ends) == len(sizes) == len(lives.begins):
            self.plans[shape] = self._plan(shape, lives)

    def _plan(self, shape: Shape, lives: _Lives) -> Placement:
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
