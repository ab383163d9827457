"""A block of attention in plain tensor operations, a tile of queries at a time.

T queries, S keys, t and s of them in a tile, H query heads, K key and value heads, G = H / K,
d head width.
"""

import math

import torch
from torch import Tensor

from parallel.sequence.merging import joined, row_sums

Ends = tuple[int, ...]


class Tiled:
    """A `BlockKernel` for any device, dtype and width."""

    tile_queries = 256

    def forward(
        self, q_THd: Tensor, k_SKd: Tensor, v_SKd: Tensor, *, ends: Ends | None
    ) -> tuple[Tensor, Tensor]:
        """See `BlockKernel`."""
        parts = []
        for rows, keys in self._tiles(q_THd.shape[0], k_SKd.shape[0], ends):
            scores_KGts = _scores(q_THd[rows], k_SKd[keys], rows, keys, ends is not None)
            lse_KGt = scores_KGts.logsumexp(dim=-1)
            weights_KGts = (scores_KGts - lse_KGt.unsqueeze(-1)).exp()
            out = torch.einsum("kgts,skd->tkgd", weights_KGts, v_SKd[keys].float())
            parts.append((out.flatten(1, 2).to(q_THd.dtype), lse_KGt.flatten(0, 1).t()))
        return joined(parts)

    def backward(
        self,
        grad_THd: Tensor,
        q_THd: Tensor,
        k_SKd: Tensor,
        v_SKd: Tensor,
        out_THd: Tensor,
        lse_TH: Tensor,
        *,
        ends: Ends | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `BlockKernel`."""
        num_kv_heads, scale = k_SKd.shape[1], 1 / math.sqrt(q_THd.shape[2])
        sums_TH = row_sums(grad_THd, out_THd)
        dq = torch.empty_like(q_THd)
        dk, dv = (torch.zeros_like(x, dtype=torch.float32) for x in (k_SKd, v_SKd))
        for rows, keys in self._tiles(q_THd.shape[0], k_SKd.shape[0], ends):
            scores_KGts = _scores(q_THd[rows], k_SKd[keys], rows, keys, ends is not None)
            lse, sums = (
                x[rows].t().unflatten(0, (num_kv_heads, -1)).unsqueeze(-1)
                for x in (lse_TH, sums_TH)
            )
            weights_KGts = (scores_KGts - lse).exp()
            grad, q = (x[rows].float().unflatten(1, (num_kv_heads, -1)) for x in (grad_THd, q_THd))
            dv[keys] += torch.einsum("kgts,tkgd->skd", weights_KGts, grad)
            dweights_KGts = torch.einsum("tkgd,skd->kgts", grad, v_SKd[keys].float())
            dscores_KGts = weights_KGts * (dweights_KGts - sums) * scale
            dk[keys] += torch.einsum("kgts,tkgd->skd", dscores_KGts, q)
            part = torch.einsum("kgts,skd->tkgd", dscores_KGts, k_SKd[keys].float())
            dq[rows] = part.flatten(1, 2).to(dq.dtype)
        return dq, dk.to(k_SKd.dtype), dv.to(v_SKd.dtype)

    def _tiles(self, queries: int, keys: int, ends: Ends | None) -> list[tuple[slice, slice]]:
        """Rows, and the keys that some of them sees."""
        found = []
        for start, end in zip((0, *(ends or ())), ends or (queries,), strict=False):
            for row in range(start, end, self.tile_queries):
                stop = min(row + self.tile_queries, end)
                found.append(
                    (slice(row, stop), slice(0, keys) if ends is None else slice(start, stop))
                )
        return found


def _scores(q_tHd: Tensor, k_sKd: Tensor, rows: slice, keys: slice, causal: bool) -> Tensor:
    """Scaled scores of a tile [K, H/K, t, s] in fp32."""
    q_tKGd = q_tHd.float().unflatten(1, (k_sKd.shape[1], -1)) / math.sqrt(q_tHd.shape[2])
    scores_KGts = torch.einsum("tkgd,skd->kgts", q_tKGd, k_sKd.float())
    if not causal:
        return scores_KGts
    row, key = (torch.arange(x.start, x.stop, device=q_tHd.device) for x in (rows, keys))
    return scores_KGts.masked_fill(key > row[:, None], -math.inf)
