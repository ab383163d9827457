"""Small models, stores and disks for tests of the activation swap."""

from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offload.activations.blocks import BlockParts, BlockSwap
from offload.activations.disk_store import DiskStore
from offload.activations.engine import ActivationSwap
from offload.activations.records import SwapOptions
from offload.activations.stores import HostStore
from offload.disk.tier import DiskTier

MIB = 1 << 20
EVERYTHING = SwapOptions(min_bytes=1, prefetch_bytes=MIB, max_in_flight_bytes=MIB, checksums=True)


@contextmanager
def open_swap(kind: str, folder: Path, options: SwapOptions = EVERYTHING, **more):
    """A swap to host memory, or to files in `folder` with pieces smaller than its tensors."""
    if kind == "host":
        store = HostStore(32 * MIB, pin=False)
    else:
        tier = DiskTier([folder / "a", folder / "b"], capacity_bytes=32 * MIB, depth=2)
        store = DiskStore(tier, buffers=3, piece_bytes=16384, closes_tier=True)
    swap = ActivationSwap(store, options, device=torch.device("cpu"), **more)
    before_bytes = store.free_bytes
    try:
        yield swap
        swap.drain()
        assert swap.live_bytes == 0
        assert store.free_bytes == before_bytes
    finally:
        swap.close()


class Block(nn.Module):
    """A decoder block in the three parts that a `BlockSwap` takes."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(2))
        self.qkv = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.gate, self.up = nn.Linear(width, inner), nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)
        self.attended = 0

    def pre(self, rows: slice, x_TD: Tensor) -> tuple[Tensor, ...]:
        h_TD = self.norms[0](x_TD)
        position_T = torch.arange(rows.start, rows.stop, dtype=x_TD.dtype)[:, None, None]
        q, k, v = (linear(h_TD).unflatten(1, (self.heads, -1)) for linear in self.qkv)
        return q * (position_T * 0.01).cos(), k * (position_T * 0.01).cos(), v

    def attention(self, q_THd: Tensor, k_THd: Tensor, v_THd: Tensor) -> Tensor:
        self.attended += 1
        q, k, v = (x.transpose(0, 1)[None] for x in (q_THd, k_THd, v_THd))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)[0].transpose(0, 1)

    def post(self, rows: slice, x_TD: Tensor, a_THd: Tensor) -> Tensor:
        x_TD = x_TD + self.out(a_THd.flatten(1))
        h_TD = self.norms[1](x_TD)
        return x_TD + self.down(F.silu(self.gate(h_TD)) * self.up(h_TD))

    def parts(self, **options: bool) -> BlockParts:
        return BlockParts(pre=self.pre, attention=self.attention, post=self.post, **options)


def make_blocks(count: int = 4, *, width: int = 48, dtype: torch.dtype = torch.float32):
    torch.manual_seed(0)
    return nn.ModuleList(Block(width, 3, 2 * width + 8) for _ in range(count)).to(dtype)


def forward(blocks: nn.ModuleList, x_TD: Tensor, swap: BlockSwap | None = None) -> Tensor:
    """Loss of the blocks, one after the other."""
    for index, block in enumerate(blocks):
        parts = block.parts()
        x_TD = parts.plain(x_TD) if swap is None else swap.run(index, x_TD, parts)
    return x_TD.float().square().mean()


def train(model: nn.Module, loss: Callable[[], Tensor], steps: int = 3) -> list[Tensor]:
    """Gradients of all steps, and the weights after them."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        found += [p.grad.clone() for p in model.parameters() if p.grad is not None]
        optimizer.step()
    return [*found, *(p.detach().clone() for p in model.parameters())]


def same_bits(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


def mlp(width: int = 40, depth: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    layers = (
        nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width))
        for _ in range(depth)
    )
    return nn.Sequential(*layers)
