"""Causal attention over packed documents, on one device.

T tokens, S new tokens, G documents of one length n, H query heads, K key and value heads, d head
width.

Guarantees, each asserted in tests/parallel/test_attention.py:
- a query sees itself and earlier keys of its own document, nothing else;
- with a window w it sees the last w of those, itself included;
- memory is O(T) without a window and O(T w) with one, whatever the document lengths;
- what a document gets does not depend on the others, bitwise.
"""

import inspect
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.attention.varlen import varlen_attn

# Releases before 2.12 take grouped heads as they come and have no such argument.
_VARLEN_NAMES_GQA = "enable_gqa" in inspect.signature(varlen_attn).parameters
_VARLEN_MAX_HEAD_DIM = 256
_BLOCK_QUERIES = (64, 512)
_SHORT_TOKENS = 256
"""Documents up to this length cost more to call for than to compute."""


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
    `scaled_dot_product_attention` per document, or for all short ones of a length. Keep it outside
    compiled graphs, which would be made anew for every set of document ends.
    """
    if _fits_varlen(q_THd):
        return _varlen(q_THd, k_TKd, v_TKd, document_ends, window)
    short = _SHORT_TOKENS if window is None else min(window, _SHORT_TOKENS)
    alike = _alike(document_ends, short)
    if alike is None:
        lengths = [b - a for a, b in zip((0, *document_ends), document_ends, strict=False)]
        return _each(q_THd, k_TKd, v_TKd, [(length, 1) for length in lengths], window)
    there, back = alike.there_T.to(q_THd.device), alike.back_T.to(q_THd.device)
    q, k, v = (_Reordered.apply(x, there, back) for x in (q_THd, k_TKd, v_TKd))
    return _Reordered.apply(_each(q, k, v, alike.groups, window), back, there)


def cached_attention(q_SHd: Tensor, k_TKd: Tensor, v_TKd: Tensor, *, window: int | None) -> Tensor:
    """Attention of the last S of one document's T tokens over the keys of all T: [S, H, d]."""
    num_new, num_keys = q_SHd.shape[0], k_TKd.shape[0]
    if num_new == num_keys:
        return _document(q_SHd, k_TKd, v_TKd, window)
    first = 0 if window is None else max(0, num_keys - num_new - window + 1)
    mask = _band(num_new, num_keys - first, window, q_SHd.device) if num_new > 1 else None
    return _sdpa(q_SHd, k_TKd[first:], v_TKd[first:], mask=mask)


class _Alike(NamedTuple):
    """An order of tokens in which short documents of one length are neighbours."""

    there_T: Tensor
    back_T: Tensor
    groups: list[tuple[int, int]]
    """Length and number of documents, in that order."""


@lru_cache(maxsize=16)
def _alike(document_ends: tuple[int, ...], short: int) -> _Alike | None:
    """None where no two documents of up to `short` tokens have the same length."""
    # Every layer asks for the same ends.
    by_length: dict[int, list[int]] = {}
    long: list[range] = []
    for start, end in zip((0, *document_ends), document_ends, strict=False):
        if end - start <= short:
            by_length.setdefault(end - start, []).append(start)
        else:
            long.append(range(start, end))
    if all(len(starts) == 1 for starts in by_length.values()):
        return None
    groups = [(length, len(starts)) for length, starts in by_length.items()]
    parts = [
        (torch.tensor(starts)[:, None] + torch.arange(length)).flatten()
        for length, starts in by_length.items()
    ]
    parts += [torch.arange(document.start, document.stop) for document in long]
    there_T = torch.cat(parts)
    back_T = torch.empty_like(there_T)
    back_T[there_T] = torch.arange(len(there_T))
    return _Alike(there_T, back_T, groups + [(len(document), 1) for document in long])


class _Reordered(Function):
    """x_T[there]; what autograd makes of an index adds row by row, this one copies them."""

    @staticmethod
    def forward(ctx: Any, x_T: Tensor, there_T: Tensor, back_T: Tensor) -> Tensor:
        ctx.back_T = back_T
        return x_T.index_select(0, there_T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_T: Tensor) -> tuple[Tensor, None, None]:
        return grad_T.index_select(0, ctx.back_T), None, None


def _each(
    q_THd: Tensor,
    k_TKd: Tensor,
    v_TKd: Tensor,
    groups: list[tuple[int, int]],
    window: int | None,
) -> Tensor:
    """Documents that lie one after the other; `groups` are lengths and numbers."""
    if len(groups) == 1:
        return _documents(q_THd, k_TKd, v_TKd, groups[0][1], window)
    # Split and not sliced: the gradient of a slice is a tensor of all tokens.
    sizes = [length * number for length, number in groups]
    pieces = zip(q_THd.split(sizes), k_TKd.split(sizes), v_TKd.split(sizes), groups, strict=True)
    return torch.cat([_documents(q, k, v, number, window) for q, k, v, (_, number) in pieces])


def _documents(
    q_THd: Tensor, k_TKd: Tensor, v_TKd: Tensor, number: int, window: int | None
) -> Tensor:
    """`number` documents of one length."""
    if number == 1:
        return _document(q_THd, k_TKd, v_TKd, window)
    q, k, v = (x.unflatten(0, (number, -1)) for x in (q_THd, k_TKd, v_TKd))
    return _sdpa(q, k, v, causal=True).flatten(0, 1)


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
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, mask: Tensor | None = None
) -> Tensor:
    """Of [T, heads, d], or of [G, n, heads, d] in one call."""
    grouped = q.shape[-2] != k.shape[-2]
    if grouped and q.is_cuda:
        # Without flash, CUDA's remaining linear-memory kernel takes equal head counts only.
        repeats = q.shape[-2] // k.shape[-2]
        k, v = (x.repeat_interleave(repeats, dim=-2) for x in (k, v))
        grouped = False
    alone = q.dim() == 3
    if alone:
        q, k, v = (x.unsqueeze(0) for x in (q, k, v))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped
    ).transpose(1, 2)
    return out.squeeze(0) if alone else out


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
