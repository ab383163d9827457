"""Which row of which group a place in the stream is. Free of torch.

The stream is the rows of epoch 0, then of epoch 1, and so on. In an epoch, blocks stand in an order
of their own; `group_size` neighbours form a group, whose rows are mixed. Only the number of rows of
each block is needed to find a place, so going on at any step costs the same.

Guarantees, each asserted in tests/trainer/data/test_rows.py:
- in every epoch each row of each block is found exactly once;
- while blocks are missing, every place in the leading groups of epoch 0 that are ready is found,
  and is where it is once all blocks are there.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from trainer.data.order import block_order

UNKNOWN = -1


@dataclass(frozen=True)
class RowPlace:
    """A row, and how many rows follow it in its group, itself included."""

    epoch: int
    group: int
    row: int
    """In the group, before its rows are mixed."""

    left: int


class RowOrder:
    """Finds places in the stream of one seed."""

    def __init__(self, num_blocks: int, *, seed: int, group_size: int) -> None:
        self.num_blocks = num_blocks
        self._seed = seed
        self._group_size = group_size
        self._order = lru_cache(maxsize=2)(self._order_of)
        self._ends: dict[int, tuple[int, NDArray[np.int64]]] = {}

    def blocks(self, epoch: int, group: int) -> NDArray[np.int64]:
        """The blocks of one group."""
        first = group * self._group_size
        return self._order(epoch)[first : first + self._group_size]

    def find(self, position: int, rows: NDArray[np.integer], *, ready: int) -> RowPlace | int:
        """The row at `position`, or the group of epoch 0 that must be ready before it is known.

        `rows` holds the rows of each block, -1 where unknown; `ready` are known. Once all are,
        not all may be zero.
        """
        ends = self._group_ends(0, rows, ready)
        known = int(ends[-1]) if len(ends) else 0
        if position < known:
            return self._place(0, ends, position)
        if ready < self.num_blocks:
            return len(ends)
        epoch, offset = divmod(position, known)
        return self._place(epoch, self._group_ends(epoch, rows, ready), offset)

    def _place(self, epoch: int, ends: NDArray[np.int64], offset: int) -> RowPlace:
        group = int(np.searchsorted(ends, offset, side="right"))
        begin = int(ends[group - 1]) if group else 0
        return RowPlace(epoch, group, offset - begin, int(ends[group]) - offset)

    def _group_ends(self, epoch: int, rows: NDArray[np.integer], ready: int) -> NDArray[np.int64]:
        if epoch not in self._ends or self._ends[epoch][0] != ready:
            # Epoch 0 is asked for at every step, beside the one the step is in.
            self._ends = {e: kept for e, kept in self._ends.items() if e in (0, epoch - 1)}
            self._ends[epoch] = (ready, self._sum_groups(epoch, rows))
        return self._ends[epoch][1]

    def _sum_groups(self, epoch: int, rows: NDArray[np.integer]) -> NDArray[np.int64]:
        """[groups]: one past the last row of each group, for the leading groups that are ready."""
        in_order = rows[self._order(epoch)].astype(np.int64)
        unknown = np.flatnonzero(in_order == UNKNOWN)
        if len(unknown):
            in_order = in_order[: unknown[0] // self._group_size * self._group_size]
        if not len(in_order):
            return in_order
        return np.cumsum(np.add.reduceat(in_order, np.arange(0, len(in_order), self._group_size)))

    def _order_of(self, epoch: int) -> NDArray[np.int64]:
        return block_order(self.num_blocks, seed=self._seed, epoch=epoch)
