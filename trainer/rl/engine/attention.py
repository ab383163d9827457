"""Attention of new tokens over keys and values in blocks.

B sequences, D rows, Q rows of the longest sequence, H query heads, K key and value heads, g query
heads per key head, X = K Q g queries of a sequence, d head width, b tokens per block, L blocks of
the longest sequence, N blocks that one sequence reads, S that several read, G readers of each,
R rows of scores, of a query and a block each: N X, then S K G Q g.

Blocks are multiplied where they lie. Only their scores are brought into the order of the
sequences, and the weights back into that of the blocks.
"""

from dataclasses import dataclass

import numpy as np
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
    """`Reads` on the device, in rows of scores, and the masks of one forward."""

    def __init__(
        self, reads: Reads, kv_heads: int, group: int, block_tokens: int, device: torch.device
    ) -> None:
        self.num_sequences, rows_each = reads.row_BQ.shape
        self.shape = (self.num_sequences, kv_heads, rows_each, group)
        """[B, K, Q, g]."""
        self.row_of_place = _moved(reads.row_BQ.ravel(), device) if rows_each > 1 else None
        self.place_D = _moved(reads.place_D, device)
        self.num_private, self.num_shared = len(reads.owner_N), len(reads.blocks_S)
        self.blocks_N = None if reads.blocks_N is None else _moved(reads.blocks_N, device)
        self.blocks_S = _moved(reads.blocks_S, device)
        queries, most_blocks = kv_heads * rows_each * group, reads.most_blocks
        self.num_queries = self.num_sequences * queries
        rows = _rows_of_scores(reads, kv_heads, queries, device)
        self.rows_of_kind = [query.numel() for query, _ in rows]
        self.sum_R, nth_R = (
            torch.cat([x.flatten() for x in kind]) for kind in zip(*rows, strict=True)
        )
        """The query b X + x of each row, beyond the last for parts that belong to nobody."""
        self.query_R = self.sum_R.clamp(max=self.num_queries - 1)
        places = self.num_queries * most_blocks
        place_R = self.sum_R * most_blocks + nth_R
        row_of_place = place_R.new_zeros(places + queries * most_blocks)
        row_of_place[place_R] = torch.arange(len(place_R), device=device)
        self.row_BXL = row_of_place[:places]
        """The row of each query and block of its sequence, any where it has fewer blocks."""
        self.place_R = place_R.clamp_(max=places - 1)
        self._position_BQ1 = _moved(reads.position_BQ, device)[:, :, None]
        self._keys = torch.arange(most_blocks * block_tokens, device=device)
        self._masks: dict[int | None, Tensor] = {}

    def mask(self, window: int | None) -> Tensor:
        """[B, 1, Q, 1, L b]: what is added to the scores; made once per forward."""
        if window not in self._masks:
            visible = self._keys <= self._position_BQ1
            if window is not None:
                visible &= self._keys > self._position_BQ1 - window
            self._masks[window] = torch.where(visible, 0.0, _MASKED)[:, None, :, None]
        return self._masks[window]


def _rows_of_scores(
    reads: Reads, kv_heads: int, queries: int, device: torch.device
) -> list[tuple[Tensor, Tensor]]:
    """Of private blocks [N, X] and, where there are any, of shared ones [S, K, G, Q g]: the query
    b X + x, and which of its sequence's blocks it meets."""
    query_X = torch.arange(queries, device=device)
    query_NX = _moved(reads.owner_N, device)[:, None] * queries + query_X
    found = [(query_NX, _moved(reads.nth_N, device)[:, None].expand_as(query_NX))]
    if len(reads.blocks_S):
        first_SKGx = _moved(reads.owner_SG, device)[:, None, :, None] * queries
        query_SKGx = first_SKGx + query_X.view(kv_heads, 1, -1)
        nth_SKGx = _moved(reads.nth_SG, device)[:, None, :, None].expand_as(query_SKGx)
        found.append((query_SKGx, nth_SKGx))
    return found


def _moved(array: NDArray[np.int64], device: torch.device) -> Tensor:
    return torch.from_numpy(array).to(device, non_blocking=True)


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
    _, kv_heads, rows_each, group = reads.shape
    width, block_tokens = q_DHd.shape[2], blocks.k_NKbd.shape[2]
    q_Rd = _by_sequence(q_DHd, reads).index_select(0, reads.query_R).float()
    keys = [k.transpose(1, 2) for k in _parts(blocks.k_NKbd, reads)]
    scores_BXL = _per_part(q_Rd, keys, reads).index_select(0, reads.row_BXL)
    scores_BKQgk = scores_BXL.view(*reads.shape, -1)
    masked_BKQgk = torch.add(reads.mask(window), scores_BKQgk, alpha=width**-0.5)
    weights_BXL = masked_BKQgk.softmax(dim=4).view(-1, block_tokens)
    values = _parts(blocks.v_NKbd, reads)
    out_Rd = _per_part(weights_BXL.index_select(0, reads.place_R), values, reads)
    nobodys = reads.num_queries // reads.num_sequences
    out = out_Rd.new_zeros(reads.num_queries + nobodys, width).index_add_(0, reads.sum_R, out_Rd)
    out = out[: reads.num_queries].to(q_DHd.dtype)
    if reads.row_of_place is None:
        return out.view(q_DHd.shape)
    by_row = out.view(-1, kv_heads, rows_each, group, width).transpose(1, 2)
    return by_row.reshape(-1, q_DHd.shape[1], width).index_select(0, reads.place_D)


def _by_sequence(q_DHd: Tensor, reads: DecodeReads) -> Tensor:
    """[B X, d]: the queries of a sequence that meet the same key head lie together."""
    width = q_DHd.shape[2]
    if reads.row_of_place is None:
        return q_DHd.reshape(-1, width)
    _, kv_heads, rows_each, group = reads.shape
    q = q_DHd.index_select(0, reads.row_of_place).view(-1, rows_each, kv_heads, group * width)
    return q.transpose(1, 2).reshape(-1, width)


def _parts(blocks_NKbd: Tensor, reads: DecodeReads) -> list[Tensor]:
    """Keys or values of the private parts and of the shared ones, in fp32: [parts K, b, d] each."""
    found = []
    if reads.blocks_N is None:
        found.append(blocks_NKbd[: reads.num_private])
    else:
        found.append(blocks_NKbd.index_select(0, reads.blocks_N))
    if reads.num_shared:
        found.append(blocks_NKbd.index_select(0, reads.blocks_S))
    return [blocks.flatten(0, 1).float() for blocks in found]


def _per_part(rows_Ry: Tensor, parts: list[Tensor], reads: DecodeReads) -> Tensor:
    """[R, z]: the rows of each part times its matrix [y, z]."""
    found = [
        torch.bmm(rows.view(part.shape[0], -1, part.shape[1]), part).view(-1, part.shape[2])
        for rows, part in zip(rows_Ry.split(reads.rows_of_kind), parts, strict=True)
        if part.shape[0]
    ]
    return found[0] if len(found) == 1 else torch.cat(found)
