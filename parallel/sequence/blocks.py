"""Attention of one block of queries on one block of keys, with log-sum-exp, and its gradients.

Parts of attention over different keys merge exactly by their log-sum-exp, and given that of all
keys each part's gradients are its share of the whole's (FlashAttention-2, arXiv 2307.08691).

T queries, S keys, H query heads, K key and value heads (K divides H), d head width, D documents.
Outputs and gradients have the dtype of their inputs, log-sum-exps are fp32 [T, H].
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

Ends = tuple[int, ...]
Gradients = tuple[Tensor, Tensor, Tensor]


class BlockKernel(Protocol):
    """Attention of a block. `ends` makes it causal inside the documents that end there (queries
    and keys are then the same tokens); None lets every query see every key."""

    def forward(
        self, q_THd: Tensor, k_SKd: Tensor, v_SKd: Tensor, *, ends: Ends | None
    ) -> tuple[Tensor, Tensor]:
        """Output [T, H, d] and log-sum-exp [T, H]."""

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
    ) -> Gradients:
        """Gradients of queries, keys and values; output and log-sum-exp are those of all keys."""


def kernel_for(q_THd: Tensor) -> BlockKernel:
    """The fastest kernel for such queries on their device."""
    if not q_THd.is_cuda:
        return CpuFlash()
    width = q_THd.shape[2]
    half = q_THd.dtype in (torch.bfloat16, torch.float16)
    return CudaFlash() if half and width % 8 == 0 and width <= 256 else Tiled()


def merge_(out_THd: Tensor, lse_TH: Tensor, part_THd: Tensor, part_lse_TH: Tensor) -> None:
    """Add attention over further keys to `out_THd` (fp32) and `lse_TH`, in place."""
    weight_TH1 = torch.sigmoid(part_lse_TH - lse_TH).unsqueeze(-1)
    out_THd.lerp_(part_THd.to(out_THd.dtype), weight_TH1)
    torch.logaddexp(lse_TH, part_lse_TH, out=lse_TH)


def row_sums(grad_THd: Tensor, out_THd: Tensor) -> Tensor:
    """Sum of gradient × output of every query and head, fp32 [T, H]: all that the gradients need
    of the output."""
    return torch.linalg.vecdot(grad_THd.float(), out_THd.float())


def output_from_sums(grad_THd: Tensor, sums_TH: Tensor) -> Tensor:
    """An output with the given `row_sums`, in the dtype of the gradient.

    The kernels ask for an output but use its row sums alone. Scaled by the largest element first,
    so that no square of a small gradient underflows.
    """
    grad = grad_THd.float()
    largest_TH1 = grad.abs().amax(dim=-1, keepdim=True).clamp_min(torch.finfo(grad.dtype).tiny)
    unit = grad / largest_TH1
    squares_TH = torch.linalg.vecdot(unit, unit).clamp_min(torch.finfo(grad.dtype).tiny)
    scale_TH = sums_TH / largest_TH1.squeeze(-1) / squares_TH
    return (unit * scale_TH.unsqueeze(-1)).to(grad_THd.dtype)


class CpuFlash:
    """The CPU flash kernel, which takes grouped heads and any strides, one call per document."""

    def forward(
        self, q_THd: Tensor, k_SKd: Tensor, v_SKd: Tensor, *, ends: Ends | None
    ) -> tuple[Tensor, Tensor]:
        """See `BlockKernel`."""
        if ends is not None and len(ends) > 1:
            parts = [
                self.forward(q_THd[a:b], k_SKd[a:b], v_SKd[a:b], ends=(b - a,))
                for a, b in zip((0, *ends), ends, strict=False)
            ]
            return _joined(parts)
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            *_batched(q_THd, k_SKd, v_SKd), 0.0, ends is not None
        )
        return out[0].transpose(0, 1), lse[0].t()

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
    ) -> Gradients:
        """See `BlockKernel`."""
        if ends is not None and len(ends) > 1:
            inputs = (grad_THd, q_THd, k_SKd, v_SKd, out_THd, lse_TH)
            parts = [
                self.backward(*(x[a:b] for x in inputs), ends=(b - a,))
                for a, b in zip((0, *ends), ends, strict=False)
            ]
            return _joined(parts)
        dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *_batched(grad_THd, q_THd, k_SKd, v_SKd, out_THd),
            lse_TH.t().unsqueeze(0),
            0.0,
            ends is not None,
        )
        return dq[0].transpose(0, 1), dk[0].transpose(0, 1), dv[0].transpose(0, 1)


class CudaFlash:
    """The CUDA flash kernel in half precision, all documents in one call."""

    def forward(
        self, q_THd: Tensor, k_SKd: Tensor, v_SKd: Tensor, *, ends: Ends | None
    ) -> tuple[Tensor, Tensor]:
        """See `BlockKernel`."""
        q_ends, k_ends, q_longest, k_longest = _lengths(q_THd, k_SKd, ends)
        out, lse_HT, *_ = torch.ops.aten._flash_attention_forward(
            q_THd,
            k_SKd,
            v_SKd,
            q_ends,
            k_ends,
            q_longest,
            k_longest,
            0.0,
            ends is not None,
            False,
        )
        return out, lse_HT.t().contiguous()

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
    ) -> Gradients:
        """See `BlockKernel`."""
        q_ends, k_ends, q_longest, k_longest = _lengths(q_THd, k_SKd, ends)
        # The two random states matter to dropout alone.
        no_state = torch.zeros(2, dtype=torch.uint64, device=q_THd.device)
        dq, dk, dv = torch.ops.aten._flash_attention_backward(
            grad_THd.contiguous(),
            q_THd,
            k_SKd,
            v_SKd,
            out_THd.contiguous(),
            lse_TH.t().contiguous(),
            q_ends,
            k_ends,
            q_longest,
            k_longest,
            0.0,
            ends is not None,
            no_state,
            no_state.new_empty(0),
        )
        return dq, dk, dv


class Tiled:
    """Plain tensor operations on a tile of queries at a time: any device, dtype and width."""

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
        return _joined(parts)

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
    ) -> Gradients:
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


def _lengths(q_THd: Tensor, k_SKd: Tensor, ends: Ends | None) -> tuple[Tensor, Tensor, int, int]:
    """Cumulative and longest lengths of queries and keys."""
    if ends is None:
        queries, keys = q_THd.shape[0], k_SKd.shape[0]
        device = q_THd.device
        return _starts((queries,), device), _starts((keys,), device), queries, keys
    longest = max(b - a for a, b in zip((0, *ends), ends, strict=False))
    starts_D = _starts(ends, q_THd.device)
    return starts_D, starts_D, longest, longest


# Every layer asks for the same; a copy from pageable memory would make the host wait each time.
@lru_cache(maxsize=256)
def _starts(ends: Ends, device: torch.device) -> Tensor:
    starts = torch.tensor((0, *ends), dtype=torch.int32)
    return starts.pin_memory().to(device, non_blocking=True)


def _batched(*tensors_THd: Tensor) -> list[Tensor]:
    """[1, heads, tokens, d] views, as the CPU kernel wants them."""
    return [x.transpose(0, 1).unsqueeze(0) for x in tensors_THd]


def _joined(parts: Sequence[tuple[Tensor, ...]]) -> Any:
    """Tuples of tensors, each position concatenated along the tokens."""
    return parts[0] if len(parts) == 1 else tuple(torch.cat(p) for p in zip(*parts, strict=True))
