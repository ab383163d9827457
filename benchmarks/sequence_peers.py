"""Peers of sequence attention: torch's ring below DTensor, and Ulysses.

n tokens of this rank, H heads, d head width.
"""

import importlib.util
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor.experimental._context_parallel import _attention as torch_ring

Qkv = tuple[Tensor, Tensor, Tensor]


class TorchRing(torch.autograd.Function):
    """torch's zigzag ring, called as its DTensor dispatch calls it on CUDA, with the CPU op."""

    @staticmethod
    def forward(ctx: Any, q_1Hnd: Tensor, k_1Hnd: Tensor, v_1Hnd: Tensor) -> Tensor:
        out, lse = torch_ring._templated_ring_attention(
            dist.group.WORLD,
            2,
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu,
            q_1Hnd,
            k_1Hnd,
            v_1Hnd,
            is_causal=True,
        )
        ctx.save_for_backward(q_1Hnd, k_1Hnd, v_1Hnd, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, grad_1Hnd: Tensor) -> Any:
        q, k, v, out, lse = ctx.saved_tensors
        return torch_ring._templated_ring_attention_backward(
            dist.group.WORLD,
            2,
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward,
            grad_1Hnd,
            "grad_out",
            q,
            k,
            v,
            out,
            lse,
            True,
            dropout_p=0.0,
        )


def run_torch_ring(inputs: Qkv, grad_nHd: Tensor, rotation: str) -> Qkv:
    """Gradients by torch's ring; `rotation` is how it passes keys: allgather or alltoall."""
    torch_ring.set_rotate_method(rotation)
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in inputs)
    k, v = (_expanded(x, q.shape[1]) for x in (k, v))
    out = TorchRing.apply(q, k, v)
    return torch.autograd.grad(out[0].transpose(0, 1), inputs, grad_nHd)


def _expanded(x_1Knd: Tensor, heads: int) -> Tensor:
    """Key heads once per query head: torch's ring merges gradients of equal head counts."""
    copies = heads // x_1Knd.shape[1]
    return x_1Knd.repeat_interleave(copies, dim=1) if copies > 1 else x_1Knd


class _PlainUlysses(torch.nn.Module):
    """All-to-all of each tensor, attention, and back, without anything else."""

    def __init__(self) -> None:
        super().__init__()
        self._ranks = dist.get_world_size()

    def forward(self, q_nHd: Tensor, k_nHd: Tensor, v_nHd: Tensor) -> Tensor:
        q, k, v = (self._to_heads(x).transpose(0, 1).unsqueeze(0) for x in (q_nHd, k_nHd, v_nHd))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self._to_tokens(out[0].transpose(0, 1).contiguous())

    def _to_heads(self, x_nHd: Tensor) -> Tensor:
        parts = x_nHd.unflatten(1, (self._ranks, -1)).transpose(0, 1).contiguous()
        return _AllToAll.apply(parts).flatten(0, 1)

    def _to_tokens(self, x_Thd: Tensor) -> Tensor:
        parts = _AllToAll.apply(x_Thd.unflatten(0, (self._ranks, -1)))
        return parts.transpose(0, 1).flatten(1, 2)


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parts: Tensor) -> Tensor:
        received = torch.empty_like(parts)
        dist.all_to_all_single(received, parts)
        return received

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        received = torch.empty_like(grad, memory_format=torch.contiguous_format)
        dist.all_to_all_single(received, grad.contiguous())
        return received


class _DeepSpeedUlysses(torch.nn.Module):
    """DeepSpeed's own layer around the same attention."""

    def __init__(self) -> None:
        super().__init__()
        import deepspeed
        from deepspeed.sequence.layer import DistributedAttention

        deepspeed.init_distributed(dist_backend="gloo", verbose=False)
        self._layer = DistributedAttention(_sdpa_1THd, dist.group.WORLD, 2, 1)

    def forward(self, q_nHd: Tensor, k_nHd: Tensor, v_nHd: Tensor) -> Tensor:
        out = self._layer(*(x.unsqueeze(0) for x in (q_nHd, k_nHd, v_nHd)), batch_dim_idx=0)
        return out[0]


def _sdpa_1THd(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).contiguous()


def ulysses_peer() -> tuple[str, torch.nn.Module]:
    """DeepSpeed's layer where it is installed, else the plain one. All ranks call it."""
    if importlib.util.find_spec("deepspeed") is not None:
        return "deepspeed_ulysses", _DeepSpeedUlysses()
    return "plain_ulysses", _PlainUlysses()


def run_ulysses(layer: torch.nn.Module, inputs: Qkv, grad_nHd: Tensor) -> Qkv:
    """Gradients by a Ulysses layer."""
    heads = inputs[0].shape[1]
    copies = heads // inputs[1].shape[1]
    q, k, v = inputs
    if copies > 1:
        k, v = (x.repeat_interleave(copies, dim=1) for x in (k, v))
    return torch.autograd.grad(layer(q, k, v), inputs, grad_nHd)
