"""Ulysses: exchange tokens for heads and back (Jacobs et al., arXiv 2309.14509).

n tokens of this rank, U ranks, T = n U tokens, H query heads, K key and value heads, d head width,
h = H / U and k = lcm(K, U) / U heads of a rank, m = h + 2k.
"""

from math import lcm
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from comms.ledger import Ledger


class HeadExchange:
    """Exchanges over one Ulysses group, counted as `sp/all_to_all`."""

    def __init__(self, group: dist.ProcessGroup, *, ledger: Ledger) -> None:
        self.group = group
        self.ranks = group.size()
        self._ledger = ledger

    def to_heads(self, q_nHd: Tensor, k_nKd: Tensor, v_nKd: Tensor) -> tuple[Tensor, ...]:
        """This rank's heads of all tokens: [T, h, d], [T, k, d], [T, k, d].

        Key heads are sent as often as ranks need them. All ranks of the group call it.
        """
        return _ToHeads.apply(self, q_nHd, k_nKd, v_nKd)

    def to_tokens(self, out_Thd: Tensor) -> Tensor:
        """All heads of this rank's tokens [n, H, d]. All ranks of the group call it."""
        return _ToTokens.apply(self, out_Thd)

    def send(self, parts: Tensor) -> Tensor:
        """Give part i of the first dim to rank i; what arrives, in order of its sender."""
        received = torch.empty_like(parts)
        own_share = parts.numel() * parts.element_size() // self.ranks
        sent_bytes = own_share * (self.ranks - 1)
        token = self._ledger.begin("sp", "all_to_all", sent_bytes, self.group)
        # As bytes: not every backend exchanges every dtype.
        work = dist.all_to_all_single(
            _as_bytes(received), _as_bytes(parts), group=self.group, async_op=True
        )
        with self._ledger.waiting(token):
            work.wait()
        return received


def _as_bytes(tensor: Tensor) -> Tensor:
    return tensor.view(-1).view(torch.uint8)


def _pack(tensors_nHd: tuple[Tensor, ...], ranks: int) -> Tensor:
    """[U, n, heads of a rank, d]: for every rank its heads of all tensors."""
    shares = [x.unflatten(1, (ranks, -1)).transpose(0, 1) for x in tensors_nHd]
    return torch.cat(shares, dim=2)


def _unpack(received_Unhd: Tensor) -> Tensor:
    """[n, U h, d]."""
    return received_Unhd.transpose(0, 1).flatten(1, 2)


class _ToHeads(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, exchange: HeadExchange, q_nHd: Tensor, k_nKd: Tensor, v_nKd: Tensor
    ) -> tuple[Tensor, ...]:
        ranks = exchange.ranks
        kv_heads = k_nKd.shape[1]
        copies = lcm(kv_heads, ranks) // kv_heads
        if copies > 1:
            k_nKd, v_nKd = (x.repeat_interleave(copies, dim=1) for x in (k_nKd, v_nKd))
        ctx.exchange, ctx.copies = exchange, copies
        received = exchange.send(_pack((q_nHd, k_nKd, v_nKd), ranks)).flatten(0, 1)
        heads, own_kv = q_nHd.shape[1] // ranks, k_nKd.shape[1] // ranks
        return received.split([heads, own_kv, own_kv], dim=1)

    @staticmethod
    def backward(ctx: Any, *grads_Thd: Tensor) -> tuple[None, Tensor, Tensor, Tensor]:
        ranks, heads = ctx.exchange.ranks, [x.shape[1] for x in grads_Thd]
        received = ctx.exchange.send(torch.cat(grads_Thd, dim=1).unflatten(0, (ranks, -1)))
        dq, dk, dv = (_unpack(x) for x in received.split(heads, dim=2))
        if ctx.copies > 1:
            dk, dv = (
                x.unflatten(1, (-1, ctx.copies)).sum(2, dtype=torch.float32).to(x.dtype)
                for x in (dk, dv)
            )
        return None, dq, dk, dv


class _ToTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, exchange: HeadExchange, out_Thd: Tensor) -> Tensor:
        ctx.exchange = exchange
        parts = out_Thd.contiguous().unflatten(0, (exchange.ranks, -1))
        return _unpack(exchange.send(parts))

    @staticmethod
    def backward(ctx: Any, grad_nHd: Tensor) -> tuple[None, Tensor]:
        received = ctx.exchange.send(_pack((grad_nHd,), ctx.exchange.ranks))
        return None, received.flatten(0, 1)
