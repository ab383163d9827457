"""Keys and values of one document's earlier tokens, for generation.

C capacity in tokens, S new tokens, K key and value heads, d head width.
"""

import torch
from torch import Tensor

from trainer.model.config import Architecture


class LayerCache:
    """Keys and values of one block, in memory taken once, at the first use."""

    def __init__(self, capacity_tokens: int) -> None:
        self._capacity_tokens = capacity_tokens
        self._k_CKd = torch.empty(0)
        self._v_CKd = torch.empty(0)
        self._length = 0

    def extend(self, k_SKd: Tensor, v_SKd: Tensor) -> tuple[Tensor, Tensor]:
        """Append new keys and values; all that are held, as views.

        Raises ValueError beyond the capacity.
        """
        end = self._length + k_SKd.shape[0]
        if end > self._capacity_tokens:
            raise ValueError(
                f"{end} tokens do not fit a cache of {self._capacity_tokens}; make it larger"
            )
        if not self._length:
            shape = (self._capacity_tokens, *k_SKd.shape[1:])
            self._k_CKd, self._v_CKd = k_SKd.new_empty(shape), v_SKd.new_empty(shape)
        self._k_CKd[self._length : end] = k_SKd
        self._v_CKd[self._length : end] = v_SKd
        self._length = end
        return self._k_CKd[:end], self._v_CKd[:end]


class KvCache:
    """One `LayerCache` per block.

    Raises ValueError where rotary angles of earlier tokens would change as the text grows, which
    `dynamic` scaling does beyond its original context.
    """

    def __init__(self, architecture: Architecture, capacity_tokens: int) -> None:
        scaling = architecture.rope_scaling
        if scaling is not None and scaling.kind == "dynamic":
            original = scaling.original_context_tokens
            if capacity_tokens > original:
                raise ValueError(
                    f"a cache of {capacity_tokens} tokens exceeds rope_scaling."
                    f"original_context_tokens={original}, beyond which dynamic scaling rotates "
                    "earlier keys anew; go without a cache"
                )
        self.layers = [LayerCache(capacity_tokens) for _ in range(architecture.num_layers)]
