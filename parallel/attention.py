"""Causal attention over packed documents, on one device.

T tokens, S new tokens, H query heads, K key and value heads, d head width.

Guarantees, each asserted in tests/parallel/test_attention.py:
- a query sees itself and earlier keys of its own document, nothing else;
- with a window w it sees the last w of those, itself included;
- memory is O(T) without a window and O(T w) with one, whatever the document lengths.
"""

import inspect
from functools import lru_cache
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

# Releases before 2.12 take grouped heads as they come and have no such argument.
_VARLEN_NAMES_GQA = "enable_gqa" in inspect.signature(varlen_attn).parameters
_VARLEN_MAX_HEAD_DIM = 256
_BLOCK_QUERIES = (64, 512)


class AttentionFn(Protocol):
    """Attention inside every document of a packed sequence of tokens."""

    def __call__(
        self,
        q_THd: Tensor,
        k_TKd: Tensor,
        v_TKd: Tensor,
        *,
        document_ends: tuple[int, ...],
        window: int | None,
    ) -> Tensor:
        """Attention output [T, H, d] in the dtype of the queries.

        `document_ends` ascend and end with T. K divides H. `window` counts the keys a query sees,
        itself included; None is all of them.
        """


def packed_attention(
    q_THd: Tensor,
    k_TKd: Tensor,
    v_TKd: Tensor,
    *,
    document_ends: tuple[int, ...],
    window: int | None,
) -> Tensor:
    """The `AttentionFn` of one device.

    On CUDA in half precision it is one variable-length flash kernel, elsewhere one call of
    `scaled_dot_product_attention` per document. Keep it outside compiled graphs, which would be
    made anew for every set of document ends.
    """
    if _fits_varlen(q_THd):
        return _varlen(q_THd, k_TKd, v_TKd, document_ends, window)
    outputs, start = [], 0
    for end in document_ends:
        outputs.append(_document(q_THd[start:end], k_TKd[start:end], v_TKd[start:end], window))
        start = end
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def cached_attention(q_SHd: Tensor, k_TKd: Tensor, v_TKd: Tensor, *, window: int | None) -> Tensor:
    """Attention of the last S of one document's T tokens over the keys of all T: [S, H, d]."""
    num_new, num_keys = q_SHd.shape[0], k_TKd.shape[0]
    if num_new == num_keys:
        return _document(q_SHd, k_TKd, v_TKd, window)
    first = 0 if window is None else max(0, num_keys - num_new - window + 1)
    mask = _band(num_new, num_keys - first, window, q_SHd.device) if num_new > 1 else None
    return _sdpa(q_SHd, k_TKd[first:], v_TKd[first:], mask=mask)


def _document(q_THd: Tensor, k_TKd: Tensor, v_TKd: Tensor, window: int | None) -> Tensor:
    length = q_THd.shape[0]
    if window is None or window >= length:
        return _sdpa(q_THd, k_TKd, v_TKd, causal=True)
    low, high = _BLOCK_QUERIES
    size = min(max(window, low), high)
    outputs = []
    for start in range(0, length, size):
        end = min(start + size, length)
        first = max(0, start - window + 1)
        mask = _band(end - start, end - first, window, q_THd.device)
        outputs.append(_sdpa(q_THd[start:end], k_TKd[first:end], v_TKd[first:end], mask=mask))
    return torch.cat(outputs)


def _band(num_queries: int, num_keys: int, window: int | None, device: torch.device) -> Tensor:
    """Which keys each query sees, where the last query is at the last key."""
    queries = torch.arange(num_keys - num_queries, num_keys, device=device)[:, None]
    keys = torch.arange(num_keys, device=device)[None, :]
    visible = keys <= queries
    return visible if window is None else visible & (keys > queries - window)


def _sdpa(
    q_THd: Tensor, k_TKd: Tensor, v_TKd: Tensor, *, causal: bool = False, mask: Tensor | None = None
) -> Tensor:
    grouped = q_THd.shape[1] != k_TKd.shape[1]
    if grouped and q_THd.is_cuda:
        # Without flash, CUDA's remaining linear-memory kernel takes equal head counts only.
        repeats = q_THd.shape[1] // k_TKd.shape[1]
        k_TKd, v_TKd = (x.repeat_interleave(repeats, dim=1) for x in (k_TKd, v_TKd))
        grouped = False
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q_THd, k_TKd, v_TKd))
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped
    )
    return out.squeeze(0).transpose(0, 1)


def _fits_varlen(q_THd: Tensor) -> bool:
    head_dim = q_THd.shape[2]
    return (
        q_THd.is_cuda
        and q_THd.dtype in (torch.bfloat16, torch.float16)
        and head_dim % 8 == 0
        and head_dim <= _VARLEN_MAX_HEAD_DIM
    )


def _varlen(
    q_THd: Tensor,
    k_TKd: Tensor,
    v_TKd: Tensor,
    document_ends: tuple[int, ...],
    window: int | None,
) -> Tensor:
    ends = _cumulative_lengths(document_ends, q_THd.device)
    longest = max(b - a for a, b in zip((0, *document_ends), document_ends, strict=False))
    bounds = (-1, 0) if window is None or window >= longest else (window - 1, 0)
    options: dict[str, Any] = {"enable_gqa": True} if _VARLEN_NAMES_GQA else {}
    out = varlen_attn(
        q_THd, k_TKd, v_TKd, ends, ends, longest, longest, window_size=bounds, **options
    )
    assert isinstance(out, Tensor)
    return out


@lru_cache(maxsize=16)
def _cumulative_lengths(document_ends: tuple[int, ...], device: torch.device) -> Tensor:
    # Every layer asks for the same ends. A copy from pageable memory would make the host wait
    # for the device each time.
    ends = torch.tensor((0, *document_ends), dtype=torch.int32)
    return ends.pin_memory().to(device, non_blocking=True)
