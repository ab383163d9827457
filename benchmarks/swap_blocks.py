"""Decoder blocks that a `BlockSwap` can run, and the ways to run them.

T tokens, D width, H heads, d head width.
"""

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from offload.activations.blocks import BlockParts, BlockSwap


class Block(nn.Module):
    """Pre-norm attention and gated feed-forward."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down = nn.Linear(inner, width, bias=False)

    def pre(self, rows: slice, x_TD: Tensor) -> tuple[Tensor, ...]:
        h_TD = self.norm(x_TD)
        return tuple(f(h_TD).unflatten(1, (self.heads, -1)) for f in (self.q, self.k, self.v))

    def attention(self, *qkv: Tensor) -> Tensor:
        q, k, v = (x_THd.transpose(0, 1)[None] for x_THd in qkv)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)[0].transpose(0, 1)

    def post(self, rows: slice, x_TD: Tensor, a_THd: Tensor) -> Tensor:
        x_TD = x_TD + self.o(a_THd.flatten(1))
        h_TD = self.norm2(x_TD)
        return x_TD + self.down(F.silu(self.gate(h_TD)) * self.up(h_TD))

    def parts(self) -> BlockParts:
        return BlockParts(pre=self.pre, attention=self.attention, post=self.post)


Run = Callable[[int, Tensor, Block], Tensor]
"""Block number, its input, the block; its output."""


def make_blocks(count: int, width: int) -> nn.ModuleList:
    return nn.ModuleList(Block(width, width // 64, 4 * width) for _ in range(count))


def plain_run(index: int, x_TD: Tensor, block: Block) -> Tensor:
    """Everything is kept."""
    y_TD = block.parts().plain(x_TD)
    assert isinstance(y_TD, Tensor)
    return y_TD


def swapped_run(swapper: BlockSwap) -> Run:
    """What the swapper's policy says."""

    def run(index: int, x_TD: Tensor, block: Block) -> Tensor:
        y_TD = swapper.run(index, x_TD, block.parts())
        assert isinstance(y_TD, Tensor)
        return y_TD

    return run


def recomputed_run(index: int, x_TD: Tensor, block: Block) -> Tensor:
    """Everything but the input is recomputed, attention too."""
    return checkpoint(plain_run, index, x_TD, block, use_reentrant=False)


def step_seconds(blocks: nn.ModuleList, x_TD: Tensor, run: Run) -> float:
    """Seconds of a forward and backward."""
    if x_TD.is_cuda:
        torch.cuda.synchronize()
    begin_s = time.perf_counter()
    h_TD = x_TD
    for index, block in enumerate(blocks):
        assert isinstance(block, Block)
        h_TD = run(index, h_TD, block)
    h_TD.float().square().mean().backward()
    if x_TD.is_cuda:
        torch.cuda.synchronize()
    elapsed_s = time.perf_counter() - begin_s
    for parameter in blocks.parameters():
        parameter.grad = None
    return elapsed_s
