"""Attention of one block of queries on one block of keys, with log-sum-exp, and its gradients.

Parts of attention over different keys merge exactly by their log-sum-exp, and given that of all
keys each part's gradients are its share of the whole's (FlashAttention-2, arXiv 2307.08691).

T queries, S keys, H query heads, K key and value heads (K divides H), d head width, D documents.
Outputs and gradients have the dtype of their inputs, log-sum-exps are fp32 [T, H].
"""

from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from parallel.sequence.merging import joined
from parallel.sequence.tiled import Tiled

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


# Older kernels take no fewer key heads than query heads, and read past the end if they get them.
_CPU_GROUPS_HEADS = torch.__version__ >= "2.13"


class CpuFlash:
    """The CPU flash kernel, which takes any strides, one call per document."""

    def __init__(self, *, groups_heads: bool = _CPU_GROUPS_HEADS) -> None:
        """`groups_heads`: whether the kernel takes grouped heads as they are."""
        self._groups_heads = groups_heads

    def forward(
        self, q_THd: Tensor, k_SKd: Tensor, v_SKd: Tensor, *, ends: Ends | None
    ) -> tuple[Tensor, Tensor]:
        """See `BlockKernel`."""
        if ends is not None and len(ends) > 1:
            parts = [
                self.forward(q_THd[a:b], k_SKd[a:b], v_SKd[a:b], ends=(b - a,))
                for a, b in zip((0, *ends), ends, strict=False)
            ]
            return joined(parts)
        k_SKd, v_SKd = self._repeated(q_THd, k_SKd, v_SKd)
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
            return joined(parts)
        k_SHd, v_SHd = self._repeated(q_THd, k_SKd, v_SKd)
        found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *_batched(grad_THd, q_THd, k_SHd, v_SHd, out_THd),
            lse_TH.t().unsqueeze(0),
            0.0,
            ends is not None,
        )
        dq, dk, dv = (x[0].transpose(0, 1) for x in found)
        if k_SHd is not k_SKd:
            dk, dv = (
                x.unflatten(1, (k_SKd.shape[1], -1)).sum(2, dtype=torch.float32).to(x.dtype)
                for x in (dk, dv)
            )
        return dq, dk, dv

    def _repeated(self, q_THd: Tensor, k_SKd: Tensor, v_SKd: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values with as many heads as the kernel needs."""
        copies = q_THd.shape[1] // k_SKd.shape[1]
        if self._groups_heads or copies == 1:
            return k_SKd, v_SKd
        return k_SKd.repeat_interleave(copies, dim=1), v_SKd.repeat_interleave(copies, dim=1)


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
