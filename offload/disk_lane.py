"""Subgroup states that pass through a few staging buffers on their way from disk and back.

Reads run ahead of the updates and writes behind them. The last subgroups of a step stay in the
buffers and come first in the next step, so they are neither written nor read in between.

Guarantees, each asserted in tests/offload/test_disk_lane.py:
- every subgroup is handed out once per pass, with what was last handed back;
- a read of a subgroup never overtakes its write;
- no more than `buffers` buffers exist, and each holds one subgroup at a time;
- `stored` shows the newest state at any time, without disturbing a pass.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from offload.disk.tier import DiskTier, Transfer, page_aligned
from offload.states import SubgroupState
from offload.subgroups import Subgroup


class DiskLane:
    """The states of `subgroups` on a disk tier. Used by the training thread alone."""

    def __init__(
        self,
        tier: DiskTier,
        subgroups: Sequence[Subgroup],
        *,
        with_master: Callable[[Subgroup], bool],
        buffers: int,
        overlap: bool = True,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._tier = tier
        self.subgroups = list(subgroups)
        self._counts = {s.index: 3 if with_master(s) else 2 for s in subgroups}
        self._records = {s.index: tier.allocate(self._bytes(s)) for s in subgroups}
        self._clock = clock
        self._overlap = overlap
        self._keep = buffers - 1 if overlap else 0
        largest_bytes = max((self._bytes(s) for s in subgroups), default=0)
        self._free = [page_aligned(largest_bytes) for _ in range(buffers if subgroups else 0)]
        self._resident: dict[int, Tensor] = {}
        self._waiting: deque[Subgroup] = deque()
        self._reading: deque[_Passage] = deque()
        self._writing: deque[_Passage] = deque()
        self._taken: dict[int, Tensor] = {}
        self.stall_s = 0.0

    @property
    def remaining(self) -> int:
        """Subgroups of this pass that were not taken yet."""
        return len(self._waiting) + len(self._reading)

    @property
    def ready(self) -> bool:
        """Whether `take` returns at once."""
        return bool(self._reading) and self._reading[0].transfer.done

    def begin(self) -> None:
        """Start a pass over all subgroups; nothing if one has started and is not finished."""
        if self.remaining or self._taken:
            return
        kept = [s for s in self.subgroups if s.index in self._resident]
        for subgroup in kept:
            buffer = self._resident.pop(subgroup.index)
            self._reading.append(_Passage(subgroup, buffer, Transfer([], 0.0, "")))
        names = {s.index for s in kept}
        self._waiting.extend(s for s in self.subgroups if s.index not in names)
        if self._overlap:
            self._read_ahead()

    def take(self) -> tuple[Subgroup, SubgroupState]:
        """The next subgroup of the pass; waits for its bytes.

        Raises:
            DiskFailure: It cannot be read, or an earlier one cannot be written.
        """
        begin_s = self._clock()
        self._read_ahead()
        if not self._reading:
            self._writing[0].transfer.wait()
            self._read_ahead()
        passage = self._reading.popleft()
        passage.transfer.wait()
        self.stall_s += self._clock() - begin_s
        self._taken[passage.subgroup.index] = passage.buffer
        return passage.subgroup, self._state(passage.subgroup, passage.buffer)

    def give(self, subgroup: Subgroup) -> None:
        """Hand a taken subgroup back; what its state holds now is what the next `take` shows."""
        buffer = self._taken.pop(subgroup.index)
        if self.remaining < self._keep:
            self._resident[subgroup.index] = buffer
            return
        self._write(subgroup, buffer)
        if self._overlap:
            self._read_ahead()
        else:
            self._writing[-1].transfer.wait()

    def stored(self, subgroup: Subgroup) -> SubgroupState:
        """A copy of a subgroup's newest state, or its buffer where it is in memory."""
        if subgroup.index in self._resident:
            return self._state(subgroup, self._resident[subgroup.index])
        for passage in self._reading:
            if passage.subgroup.index == subgroup.index:
                passage.transfer.wait()
                return self._state(subgroup, passage.buffer)
        self._wait_for_write(subgroup)
        buffer = page_aligned(self._bytes(subgroup))
        self._tier.read(self._records[subgroup.index], [buffer]).wait()
        return self._state(subgroup, buffer)

    def replace(self, subgroup: Subgroup, fill: Callable[[SubgroupState], None]) -> None:
        """Write a state that `fill` makes from a zeroed one. Ends a pass that has begun."""
        self.settle()
        buffer = self._resident.pop(subgroup.index, None)
        buffer = self._free.pop() if buffer is None else buffer
        state = self._state(subgroup, buffer)
        for tensor in state.tensors():
            tensor.zero_()
        fill(state)
        self._write(subgroup, buffer)
        self._writing[-1].transfer.wait()
        self._reap()

    def settle(self) -> None:
        """Wait for all transfers and end the pass; states in buffers that changed stay there."""
        self._waiting.clear()
        while self._writing:
            self._writing[0].transfer.wait()
            self._reap()
        while self._reading:
            passage = self._reading.popleft()
            passage.transfer.wait()
            if passage.kept:
                self._resident[passage.subgroup.index] = passage.buffer
            else:
                self._free.append(passage.buffer)

    def take_stall_s(self) -> float:
        """Seconds spent waiting for the disk since the last call."""
        stall_s, self.stall_s = self.stall_s, 0.0
        return stall_s

    def _read_ahead(self) -> None:
        self._reap()
        while self._waiting and self._free and (self._overlap or not self._reading):
            subgroup = self._waiting.popleft()
            self._wait_for_write(subgroup)
            buffer = self._free.pop()
            view = buffer[: self._bytes(subgroup)]
            transfer = self._tier.read(self._records[subgroup.index], [view])
            self._reading.append(_Passage(subgroup, buffer, transfer, kept=False))

    def _write(self, subgroup: Subgroup, buffer: Tensor) -> None:
        view = buffer[: self._bytes(subgroup)]
        transfer = self._tier.write(self._records[subgroup.index], [view])
        self._writing.append(_Passage(subgroup, buffer, transfer, kept=False))

    def _reap(self) -> None:
        """Take back the buffers of writes that are done; their failures surface here."""
        for passage in list(self._writing):
            if passage.transfer.done:
                passage.transfer.wait()
                self._writing.remove(passage)
                self._free.append(passage.buffer)

    def _wait_for_write(self, subgroup: Subgroup) -> None:
        for passage in self._writing:
            if passage.subgroup.index == subgroup.index:
                passage.transfer.wait()
        self._reap()

    def _bytes(self, subgroup: Subgroup) -> int:
        return 4 * self._counts[subgroup.index] * subgroup.size

    def _state(self, subgroup: Subgroup, buffer: Tensor) -> SubgroupState:
        parts = buffer[: self._bytes(subgroup)].view(torch.float32).split(subgroup.size)
        return SubgroupState(
            exp_avg=parts[0], exp_avg_sq=parts[1], master=parts[2] if len(parts) == 3 else None
        )


@dataclass(frozen=True, eq=False)
class _Passage:
    """A subgroup's state on its way through a buffer."""

    subgroup: Subgroup
    buffer: Tensor
    transfer: Transfer
    kept: bool = True
    """Whether the buffer holds news that the disk has not."""


def record_bytes(subgroup: Subgroup, *, with_master: bool) -> int:
    """Disk space of one subgroup's states."""
    return 4 * (3 if with_master else 2) * subgroup.size
