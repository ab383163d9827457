"""Who holds which block of keys and values. No torch.

Guarantees, asserted in tests/trainer/rl/engine/test_blocks.py:
- a block has as many holders as it was given to, and is free again when the last lets go;
- nothing is handed out beyond the number of blocks, and a refusal changes nothing;
- the lowest free blocks go first, so that those in use lie together.
"""

import heapq
from collections.abc import Iterable

from trainer.model.config import Architecture


class BlockPool:
    """Counts the holders of every block."""

    def __init__(self, num_blocks: int) -> None:
        self.holders = [0] * num_blocks
        """Per block; 0 is free."""
        self._free = list(range(num_blocks))

    @property
    def num_blocks(self) -> int:
        """Free or not."""
        return len(self.holders)

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    def take(self) -> int | None:
        """A free block, now held once; None if there is none."""
        if not self._free:
            return None
        block = heapq.heappop(self._free)
        self.holders[block] = 1
        return block

    def share(self, blocks: Iterable[int]) -> None:
        """One more holder for each."""
        for block in blocks:
            self.holders[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """One holder less for each."""
        for block in blocks:
            self.holders[block] -= 1
            if not self.holders[block]:
                heapq.heappush(self._free, block)


def block_bytes(architecture: Architecture, block_tokens: int, element_bytes: int) -> int:
    """Memory of one block: keys and values of `block_tokens` tokens in all layers."""
    a = architecture
    per_token = 2 * a.num_layers * a.num_kv_heads * a.resolved_head_dim * element_bytes
    return block_tokens * per_token
