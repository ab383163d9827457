"""A module and its inputs, for tests that spread it."""

import torch
from torch import nn


class Stack(nn.Module):
    """Blocks of odd sizes, so that shards are uneven and some are empty. Every one is alike."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Linear(5, 5, bias=True) for _ in range(3))
        self.head = nn.Linear(5, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """A loss, summed over rows."""
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        return self.head(x).square().sum()


def rows(rank: int, number: int) -> torch.Tensor:
    """What a rank computes in one round."""
    return torch.randn(4, 5, generator=torch.Generator().manual_seed(10 * rank + number))
