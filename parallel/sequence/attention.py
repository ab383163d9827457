"""Attention of packed documents that a group of ranks holds together.

T tokens of this rank, H query heads, K key and value heads, d head width.

Guarantees, each asserted in tests/parallel/sequence/test_attention.py:
- outputs and gradients are those of `packed_attention` on one rank, for every scheme, any lengths
  of documents and any number of key heads (within 2e-6 of the largest value in fp32, 1e-2 in bf16);
- the ledger shows exactly `attention_bytes`;
- the backward is the same every time, bit by bit, where the block kernels are (they are on CPU);
- it can be recomputed in the backward.
"""

import torch.distributed as dist
from torch import Tensor

from comms.ledger import Ledger
from parallel.attention import packed_attention
from parallel.layout import divisors
from parallel.sequence.communicators import SequenceGroups
from parallel.sequence.exchange import HeadExchange
from parallel.sequence.ring import Carousel
from parallel.sequence.ring_attention import ring_attention
from parallel.sequence.stretches import AttentionScheme
from parallel.sequence.tiles import ring_tiles


class SequenceAttention:
    """An `AttentionFn` of one sequence group, each rank of which holds its `token_ranges`.

    In plain PyTorch, with tensors of this rank's tokens only:

        attention = SequenceAttention(dist.group.WORLD, AttentionScheme(ring=4), ledger=Ledger())
        out_THd = attention(q_THd, k_TKd, v_TKd, document_ends=(total_tokens,), window=None)
    """

    def __init__(
        self,
        group: dist.ProcessGroup | SequenceGroups,
        scheme: AttentionScheme,
        *,
        ledger: Ledger,
    ) -> None:
        """`group` alone serves one technique; `make_communicators` makes groups for several.
        Raises ValueError where they do not fit the scheme."""
        if not isinstance(group, SequenceGroups):
            group = SequenceGroups.of(group, scheme)
        self.scheme = scheme
        self.position = group.position
        self._exchange = (
            None if group.ulysses is None else HeadExchange(group.ulysses, ledger=ledger)
        )
        self._carousel = Carousel(inner=group.inner, outer=group.outer, ledger=ledger)

    def __call__(
        self,
        q_THd: Tensor,
        k_TKd: Tensor,
        v_TKd: Tensor,
        *,
        document_ends: tuple[int, ...],
        window: int | None,
    ) -> Tensor:
        """Attention output [T, H, d]. All ranks of the group call it, in the same order, also in
        the backward.

        `document_ends` are those of the group's whole stream: ascending, the last is all tokens.
        Raises ValueError where the scheme cannot serve the shapes or the window.
        """
        self._check(q_THd, k_TKd, document_ends, window)
        if self._exchange is None:
            return self._attend(q_THd, k_TKd, v_TKd, document_ends, window)
        q, k, v = self._exchange.to_heads(q_THd, k_TKd, v_TKd)
        return self._exchange.to_tokens(self._attend(q, k, v, document_ends, window))

    def _attend(
        self,
        q_THd: Tensor,
        k_TKd: Tensor,
        v_TKd: Tensor,
        document_ends: tuple[int, ...],
        window: int | None,
    ) -> Tensor:
        """Of whole ring blocks, with the heads that this rank has by then."""
        if self.scheme.ring == 1:
            return packed_attention(q_THd, k_TKd, v_TKd, document_ends=document_ends, window=window)
        return ring_attention(
            self._carousel,
            q_THd,
            k_TKd,
            v_TKd,
            tiles=ring_tiles(document_ends, self.scheme.ring, self._carousel.place),
            backward=self.scheme.backward,
        )

    def _check(
        self, q_THd: Tensor, k_TKd: Tensor, document_ends: tuple[int, ...], window: int | None
    ) -> None:
        tokens, heads = q_THd.shape[:2]
        if tokens * self.scheme.degree != document_ends[-1]:
            raise ValueError(
                f"{tokens} tokens on each of {self.scheme.degree} ranks are not the "
                f"{document_ends[-1]} that document_ends end with; pass the ends of the group's "
                "whole stream, and this rank's token_ranges of it"
            )
        if heads % self.scheme.ulysses:
            raise ValueError(
                f"ulysses={self.scheme.ulysses} does not divide {heads} query heads; choose one "
                f"of {divisors(heads)}"
            )
        if heads % k_TKd.shape[1]:
            raise ValueError(f"{k_TKd.shape[1]} key heads do not divide {heads} query heads")
        if window is not None and self.scheme.ring > 1 and window < document_ends[-1]:
            raise ValueError(
                f"a window of {window} cannot use a ring; use ulysses={self.scheme.degree}"
            )
