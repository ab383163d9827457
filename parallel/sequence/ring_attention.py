"""Causal attention of packed documents over a ring of blocks, exact, and its gradients.

Forward: keys and values go round and each block's outputs are merged by log-sum-exp (Ring
Attention, arXiv 2310.01889). Backward: either keys and values go round again with their gradients,
or the queries do, with the gradients of the outputs and of themselves (BurstAttention, arXiv
2403.09347, algorithm 2): fewer bytes where key heads are about as many as query heads.

n tokens of this block, H query heads, K key and value heads, d head width. Merged outputs, sums of
gradients and log-sum-exps are fp32.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from parallel.sequence.blocks import BlockKernel, kernel_for
from parallel.sequence.merging import merge_, output_from_sums, row_sums
from parallel.sequence.ring import Carousel
from parallel.sequence.tiles import Rectangle, RingTiles


def ring_attention(
    carousel: Carousel,
    q_nHd: Tensor,
    k_nKd: Tensor,
    v_nKd: Tensor,
    *,
    tiles: RingTiles,
    backward: Literal["keys", "queries"],
) -> Tensor:
    """Attention output [n, H, d] of this block's queries. All ranks of the ring call it."""
    return _RingAttention.apply(q_nHd, k_nKd, v_nKd, carousel, tiles, backward)


class _RingAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_nHd: Tensor,
        k_nKd: Tensor,
        v_nKd: Tensor,
        carousel: Carousel,
        tiles: RingTiles,
        backward: Literal["keys", "queries"],
    ) -> Tensor:
        kernel = kernel_for(q_nHd)
        keys_2nKd = torch.stack((k_nKd, v_nKd))
        merged: list[Tensor] = []

        def visit(kv_2nKd: Tensor, place: int) -> None:
            if place == carousel.place:
                out, lse = kernel.forward(q_nHd, k_nKd, v_nKd, ends=tiles.own_ends)
                merged.extend((out.float(), lse.contiguous()))
                return
            out, lse = merged
            for tile in tiles.own_queries[place]:
                rows, keys = _slices(tile)
                k, v = kv_2nKd[:, keys].unbind()
                part = kernel.forward(q_nHd[rows], k, v, ends=None)
                merge_(out[rows], lse[rows], *part)

        carousel.visit_all(keys_2nKd, visit)
        out_nHd = merged[0].to(q_nHd.dtype)
        ctx.save_for_backward(q_nHd, keys_2nKd, out_nHd, merged[1])
        ctx.carousel, ctx.tiles, ctx.mode = carousel, tiles, backward
        return out_nHd

    @staticmethod
    def backward(ctx: Any, grad_nHd: Tensor) -> tuple[Tensor | None, ...]:
        q_nHd, keys_2nKd, out_nHd, lse_nH = ctx.saved_tensors
        # A gradient that is one number expanded has no memory that the kernels could walk.
        grad_nHd = grad_nHd.contiguous()
        block = _Block(kernel_for(q_nHd), ctx.tiles, grad_nHd, q_nHd, keys_2nKd, out_nHd, lse_nH)
        gather = _gather_keys if ctx.mode == "keys" else _gather_queries
        dq_nHd, dkeys_2nKd = gather(block, ctx.carousel)
        dk_nKd, dv_nKd = dkeys_2nKd.to(keys_2nKd.dtype).unbind()
        return dq_nHd.to(q_nHd.dtype), dk_nKd, dv_nKd, None, None, None


@dataclass(frozen=True)
class _Block:
    """What a rank knows of its own block in the backward."""

    kernel: BlockKernel
    tiles: RingTiles
    grad_nHd: Tensor
    q_nHd: Tensor
    keys_2nKd: Tensor
    out_nHd: Tensor
    lse_nH: Tensor

    def add_own(self, dq_nHd: Tensor, dkeys_2nKd: Tensor, heads: slice, kv_heads: slice) -> None:
        """Add the gradients of its queries on its own keys, of some heads."""
        k, v = self.keys_2nKd[:, :, kv_heads].unbind()
        dq, dk, dv = self.kernel.backward(
            self.grad_nHd[:, heads],
            self.q_nHd[:, heads],
            k,
            v,
            self.out_nHd[:, heads],
            self.lse_nH[:, heads],
            ends=self.tiles.own_ends,
        )
        dq_nHd[:, heads] += dq
        dkeys_2nKd[0, :, kv_heads] += dk
        dkeys_2nKd[1, :, kv_heads] += dv

    def parts(self, late_share: float) -> list[tuple[slice, slice]]:
        """Heads and key heads of its own work: early, and about `late_share` of it, late."""
        heads, kv_heads = self.q_nHd.shape[1], self.keys_2nKd.shape[2]
        pieces = kv_heads if kv_heads > 1 else heads
        cut = min(max(1, round(pieces * (1 - late_share))), pieces - 1)
        cuts = [(a * heads // pieces, b * heads // pieces) for a, b in ((0, cut), (cut, pieces))]
        if kv_heads == 1:
            return [(slice(a, b), slice(0, 1)) for a, b in cuts if a < b]
        return [
            (slice(*cuts[0]), slice(0, cut)),
            (slice(*cuts[1]), slice(cut, kv_heads)),
        ]


def _gather_keys(block: _Block, carousel: Carousel) -> tuple[Tensor, Tensor]:
    """Gradients of queries, and of keys and values, which travel."""
    dq_nHd = torch.zeros_like(block.q_nHd, dtype=torch.float32)
    own_dkeys = torch.zeros_like(block.keys_2nKd, dtype=torch.float32)
    *early, late = block.parts(_late_share(block.keys_2nKd, own_dkeys))

    def contribute(keys_2nKd: Tensor, place: int) -> Tensor:
        if place == carousel.place:
            for part in early:
                block.add_own(dq_nHd, own_dkeys, *part)
            return own_dkeys
        dkeys_2nKd = torch.zeros_like(own_dkeys)
        for tile in block.tiles.own_queries[place]:
            rows, keys = _slices(tile)
            k, v = keys_2nKd[:, keys].unbind()
            dq, dk, dv = block.kernel.backward(
                block.grad_nHd[rows],
                block.q_nHd[rows],
                k,
                v,
                block.out_nHd[rows],
                block.lse_nH[rows],
                ends=None,
            )
            dq_nHd[rows] += dq
            dkeys_2nKd[0, keys] += dk
            dkeys_2nKd[1, keys] += dv
        return dkeys_2nKd

    total = carousel.gather_all(
        block.keys_2nKd, contribute, late=lambda: block.add_own(dq_nHd, own_dkeys, *late)
    )
    return dq_nHd, total


def _gather_queries(block: _Block, carousel: Carousel) -> tuple[Tensor, Tensor]:
    """Gradients of queries, which travel, and of keys and values."""
    dkeys_2nKd = torch.zeros_like(block.keys_2nKd, dtype=torch.float32)
    own_dq = torch.zeros_like(block.q_nHd, dtype=torch.float32)
    queries = _pack_queries(block)
    *early, late = block.parts(_late_share(queries, own_dq))

    def contribute(packed: Tensor, place: int) -> Tensor:
        if place == carousel.place:
            for part in early:
                block.add_own(own_dq, dkeys_2nKd, *part)
            return own_dq
        q, grad, lse, sums = _unpack_queries(packed, block.q_nHd)
        dq_nHd = torch.zeros_like(own_dq)
        for tile in block.tiles.own_keys[place]:
            rows, keys = _slices(tile)
            k, v = block.keys_2nKd[:, keys].unbind()
            dq, dk, dv = block.kernel.backward(
                grad[rows],
                q[rows],
                k,
                v,
                output_from_sums(grad[rows], sums[rows]),
                lse[rows],
                ends=None,
            )
            dq_nHd[rows] += dq
            dkeys_2nKd[0, keys] += dk
            dkeys_2nKd[1, keys] += dv
        return dq_nHd

    total = carousel.gather_all(
        queries, contribute, late=lambda: block.add_own(own_dq, dkeys_2nKd, *late)
    )
    return total, dkeys_2nKd


def _late_share(read: Tensor, sums: Tensor) -> float:
    """Share of its own work that a block keeps for the last hop of the sums; the rest hides the
    first hop of what is read."""
    read_bytes, sums_bytes = (x.numel() * x.element_size() for x in (read, sums))
    return sums_bytes / (read_bytes + sums_bytes)


def _pack_queries(block: _Block) -> Tensor:
    """Queries, output gradients, log-sum-exps and row sums as bytes, one message."""
    sums_nH = row_sums(block.grad_nHd, block.out_nHd)
    parts = (block.lse_nH, sums_nH, block.q_nHd, block.grad_nHd.to(block.q_nHd.dtype))
    return torch.cat([x.contiguous().view(-1).view(torch.uint8) for x in parts])


def _unpack_queries(packed: Tensor, like_nHd: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, output gradients, log-sum-exps and row sums."""
    rows_bytes = 4 * like_nHd.shape[0] * like_nHd.shape[1]
    lse, sums, wide = packed.split([rows_bytes, rows_bytes, packed.numel() - 2 * rows_bytes])
    q, grad = wide.view(like_nHd.dtype).view(2, *like_nHd.shape).unbind()
    lse, sums = (x.view(torch.float32).view(like_nHd.shape[:2]) for x in (lse, sums))
    return q, grad, lse, sums


def _slices(tile: Rectangle) -> tuple[slice, slice]:
    return slice(tile.q_start, tile.q_stop), slice(tile.k_start, tile.k_stop)
