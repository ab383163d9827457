"""Attention of new tokens over keys and values in blocks.

B sequences, D rows, Q rows of the longest sequence, H query heads, K key and value heads, g query
heads per key head, d head width, b tokens per block, M queries per part and key head, P parts.

Blocks that one sequence reads are multiplied where they lie. Each part gives its own maximum, sum
and weighted values, which are merged per sequence; that is exact up to the order of summation.
"""

from dataclasses import dataclass

import torch
from numpy.typing import NDArray
from torch import Tensor

from parallel.attention import cached_attention, packed_attention
from trainer.rl.engine.kv import KvBlocks
from trainer.rl.engine.paging import Reads

_MASKED = -1e30


@dataclass(frozen=True)
class Chunk:
    """Rows [begin, ends[-1]) of pieces of prompts: whole ones from their first token on, which end
    at `ends`, or one whose first row is at position `start`, and its blocks."""

    begin: int
    ends: tuple[int, ...]
    start: int
    blocks: Tensor


class DecodeReads:
    """`Reads` on the device, and the masks of one forward."""

    def __init__(self, reads: Reads, block_tokens: int, device: torch.device) -> None:
        def moved(array: NDArray) -> Tensor:
            return torch.from_numpy(array).to(device, non_blocking=True)

        self.num_sequences, self.rows_each = reads.row_BQ.shape
        self.row_of_place = moved(reads.row_BQ.ravel()) if self.rows_each > 1 else None
        self.place_D = moved(reads.place_D)
        self.num_private = len(reads.owner_N)
        self.blocks_N = None if reads.blocks_N is None else moved(reads.blocks_N)
        self.owner_N = moved(reads.owner_N)
        self.num_shared, self.readers = reads.owner_SG.shape
        self.blocks_S = moved(reads.blocks_S)
        self.owner_of_shared = moved(reads.owner_SG.ravel())
        self.owner_P = torch.cat((self.owner_N, self.owner_of_shared))
        self.parts = moved(reads.parts_BL.ravel())
        self._position_BQ = moved(reads.position_BQ)
        self._first_N, self._first_SG = moved(reads.first_N), moved(reads.first_SG)
        self._places_b = torch.arange(block_tokens, device=device)
        self._masks: dict[tuple[int | None, int, int], tuple[Tensor, Tensor]] = {}

    def masks(self, window: int | None, kv_heads: int, group: int) -> tuple[Tensor, Tensor]:
        """What is added to the scores of private and shared parts; made once per forward."""
        key = (window, kv_heads, group)
        if key not in self._masks:
            private = self._mask(self.owner_N, self._first_N, window)
            private = private[:, None, :, None].expand(-1, kv_heads, -1, group, -1)
            shared = self._mask(self.owner_of_shared, self._first_SG.flatten(), window)
            shared = shared.unflatten(0, (self.num_shared, self.readers))
            shared = shared[:, None, :, :, None].expand(-1, kv_heads, -1, -1, group, -1)
            self._masks[key] = (
                private.reshape(-1, self.rows_each * group, private.shape[-1]),
                shared.reshape(
                    self.num_shared * kv_heads, self.readers * self.rows_each * group, -1
                )
                if self.num_shared
                else shared,
            )
        return self._masks[key]

    def _mask(self, owner_P: Tensor, first_P: Tensor, window: int | None) -> Tensor:
        query_PQ1 = self._position_BQ.index_select(0, owner_P).unsqueeze(2)
        key_P1b = (first_P.unsqueeze(1) + self._places_b).unsqueeze(1)
        visible = key_P1b <= query_PQ1
        if window is not None:
            visible &= key_P1b > query_PQ1 - window
        return torch.where(visible, 0.0, _MASKED)


class PagedAttention:
    """The `AttentionFn` of one layer and forward: the first rows continue sequences, the others
    are pieces of prompts. Stores the new keys and values before it reads."""

    def __init__(
        self, blocks: KvBlocks, rows_TK: Tensor, decode: DecodeReads | None, chunks: list[Chunk]
    ) -> None:
        self._blocks = blocks
        self._rows_TK = rows_TK
        self._decode = decode
        self._chunks = chunks

    def __call__(
        self,
        q_THd: Tensor,
        k_TKd: Tensor,
        v_TKd: Tensor,
        *,
        document_ends: tuple[int, ...],
        window: int | None,
    ) -> Tensor:
        """[T, H, d]. `document_ends` is of no use here: the sequences are known."""
        blocks = self._blocks
        blocks.write(k_TKd, v_TKd, self._rows_TK)
        outputs = []
        if self._decode is not None:
            num_rows = self._decode.place_D.shape[0]
            outputs.append(decode_attention(q_THd[:num_rows], blocks, self._decode, window))
        for chunk in self._chunks:
            rows = slice(chunk.begin, chunk.ends[-1])
            keys, values = k_TKd[rows], v_TKd[rows]
            if chunk.start:
                keys, values = blocks.of(chunk.blocks, chunk.start + keys.shape[0])
                outputs.append(cached_attention(q_THd[rows], keys, values, window=window))
            else:
                ends = tuple(end - chunk.begin for end in chunk.ends)
                outputs.append(
                    packed_attention(q_THd[rows], keys, values, document_ends=ends, window=window)
                )
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def decode_attention(
    q_DHd: Tensor, blocks: KvBlocks, reads: DecodeReads, window: int | None
) -> Tensor:
    """[D, H, d] for rows whose keys and values, their own included, are in `blocks`."""
    kv_heads, width = blocks.k_NKbd.shape[1], blocks.k_NKbd.shape[3]
    group = q_DHd.shape[1] // kv_heads
    queries_each = reads.rows_each * group
    q_BX = _by_sequence(q_DHd, reads, kv_heads, group)
    private_mask, shared_mask = reads.masks(window, kv_heads, group)
    found = []
    if reads.num_private:
        q = q_BX.index_select(0, reads.owner_N).view(-1, queries_each, width)
        k, v = _private_blocks(blocks, reads)
        found.append(
            [x.view(-1, kv_heads * queries_each, x.shape[2]) for x in _part(q, k, v, private_mask)]
        )
    if reads.num_shared:
        found.append(_shared_parts(q_BX, blocks, reads, shared_mask, queries_each))
    top_P, sum_P, out_P = found[0] if len(found) == 1 else map(torch.cat, zip(*found, strict=True))
    out_BXd = _merged(top_P, sum_P, out_P, reads).to(q_DHd.dtype)
    if reads.row_of_place is None:
        return out_BXd.view(q_DHd.shape)
    out = out_BXd.view(-1, kv_heads, reads.rows_each, group, width).transpose(1, 2)
    return out.reshape(-1, q_DHd.shape[1], width).index_select(0, reads.place_D)


def _by_sequence(q_DHd: Tensor, reads: DecodeReads, kv_heads: int, group: int) -> Tensor:
    """[B, K Q g d]: the queries of a sequence that meet the same key head lie together."""
    if reads.row_of_place is None:
        return q_DHd.reshape(reads.num_sequences, -1)
    q = q_DHd.index_select(0, reads.row_of_place)
    q = q.view(-1, reads.rows_each, kv_heads, group * q.shape[2])
    return q.transpose(1, 2).reshape(reads.num_sequences, -1)


def _private_blocks(blocks: KvBlocks, reads: DecodeReads) -> tuple[Tensor, Tensor]:
    k, v = blocks.k_NKbd, blocks.v_NKbd
    if reads.blocks_N is None:
        k, v = k[: reads.num_private], v[: reads.num_private]
    else:
        k, v = k.index_select(0, reads.blocks_N), v.index_select(0, reads.blocks_N)
    return k.flatten(0, 1), v.flatten(0, 1)


def _shared_parts(
    q_BX: Tensor, blocks: KvBlocks, reads: DecodeReads, mask: Tensor, queries_each: int
) -> list[Tensor]:
    shared, readers, kv_heads = reads.num_shared, reads.readers, blocks.k_NKbd.shape[1]
    q = q_BX.index_select(0, reads.owner_of_shared)
    q = q.view(shared, readers, kv_heads, -1).transpose(1, 2)
    q = q.reshape(shared * kv_heads, readers * queries_each, -1)
    k = blocks.k_NKbd.index_select(0, reads.blocks_S).flatten(0, 1)
    v = blocks.v_NKbd.index_select(0, reads.blocks_S).flatten(0, 1)
    found = []
    for x in _part(q, k, v, mask):
        by_reader = x.view(shared, kv_heads, readers, queries_each, -1).transpose(1, 2)
        found.append(by_reader.reshape(shared * readers, kv_heads * queries_each, -1))
    return found


def _part(
    q_PMd: Tensor, k_Pbd: Tensor, v_Pbd: Tensor, mask_PMb: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Maximum, sum and weighted values of each part alone, in fp32."""
    q_PMd, k_Pbd, v_Pbd = q_PMd.float(), k_Pbd.float(), v_Pbd.float()
    scores = torch.baddbmm(mask_PMb, q_PMd, k_Pbd.transpose(1, 2), alpha=q_PMd.shape[2] ** -0.5)
    top = scores.amax(dim=2, keepdim=True)
    weights = scores.sub_(top).exp_()
    return top, weights.sum(dim=2, keepdim=True), torch.bmm(weights, v_Pbd)


def _merged(top_P: Tensor, sum_P: Tensor, out_P: Tensor, reads: DecodeReads) -> Tensor:
    """[B, K Q g, d]: parts of a sequence weighed by their share of its sum."""
    by_sequence = top_P.index_select(0, reads.parts).view(reads.num_sequences, -1, *top_P.shape[1:])
    # Parts out of reach have a maximum far below, and so a weight of exactly 0.
    weight_P = (top_P - by_sequence.amax(dim=1).index_select(0, reads.owner_P)).exp_()
    shape = (reads.num_sequences, *out_P.shape[1:])
    total = sum_P.new_zeros(*shape[:2], 1).index_add_(0, reads.owner_P, sum_P * weight_P)
    out = out_P.new_zeros(shape).index_add_(0, reads.owner_P, out_P.mul_(weight_P))
    return out.div_(total)
