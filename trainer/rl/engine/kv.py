"""Memory for keys and values, in blocks.

N blocks, b tokens per block, T new tokens, K key and value heads, d head width.
"""

import torch
from torch import Tensor

from trainer.model.config import Architecture


class KvBlocks:
    """Keys and values of one layer: [N, K, b, d] each, heads before tokens so that the tokens of
    one block and head are one matrix."""

    def __init__(self, k_NKbd: Tensor, v_NKbd: Tensor) -> None:
        self.k_NKbd, self.v_NKbd = k_NKbd, v_NKbd
        self._k_rows = k_NKbd.view(-1, k_NKbd.shape[3])
        self._v_rows = v_NKbd.view(-1, v_NKbd.shape[3])

    def write(self, k_TKd: Tensor, v_TKd: Tensor, rows_TK: Tensor) -> None:
        """Store new tokens; `rows_TK` counts rows of d over blocks, heads, tokens."""
        self._k_rows.index_put_((rows_TK,), k_TKd)
        self._v_rows.index_put_((rows_TK,), v_TKd)

    def of(self, blocks: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Copies of the first `length` tokens held by `blocks`: [length, K, d] each."""
        return _joined(self.k_NKbd, blocks, length), _joined(self.v_NKbd, blocks, length)

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Copy whole blocks."""
        self.k_NKbd[target] = self.k_NKbd[source]
        self.v_NKbd[target] = self.v_NKbd[source]


class KvMemory:
    """`KvBlocks` of every layer, taken at once and zeroed."""

    def __init__(
        self,
        architecture: Architecture,
        num_blocks: int,
        block_tokens: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        a = architecture
        shape = (num_blocks, a.num_kv_heads, block_tokens, a.resolved_head_dim)
        self.layers = [
            KvBlocks(*(torch.zeros(shape, dtype=dtype, device=device) for _ in range(2)))
            for _ in range(a.num_layers)
        ]
        self._device = device

    def clear(self) -> None:
        """Zero everything: not even a weight of 0 hides what is not finite."""
        for layer in self.layers:
            layer.k_NKbd.zero_()
            layer.v_NKbd.zero_()

    def copy(self, pairs: list[tuple[int, int]]) -> None:
        """Copy blocks, (from, to), in all layers."""
        if not pairs:
            return
        source, target = torch.tensor(pairs, device=self._device).unbind(1)
        for layer in self.layers:
            layer.copy(source, target)


def _joined(blocks_NKbd: Tensor, chosen: Tensor, length: int) -> Tensor:
    picked_nKbd = blocks_NKbd.index_select(0, chosen)
    return picked_nKbd.transpose(1, 2).flatten(0, 1)[:length]
