"""A model whose sizes divide by nothing, and the training of it in one process."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from parallel.hierarchy.widths import Widths


class Block(nn.Module):
    """Odd rows, a bias, a parameter of three elements, stacked experts, one frozen matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 7)
        self.down = nn.Linear(7, 6, bias=False)
        self.gain = nn.Parameter(torch.ones(3))
        self.experts = nn.Parameter(torch.randn(3, 6, 4) / 3)
        self.frozen = nn.Parameter(torch.randn(5, 6) / 3, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        mixed = sum(self.gain[i] * (x @ self.experts[i]) for i in range(3))
        side = (x @ self.frozen.t()).mean(-1, keepdim=True)
        return x + self.down(torch.tanh(self.up(x))) + side + mixed.sum(-1, keepdim=True)


class Odd(nn.Module):
    """Embedding, three blocks, head; the loss is a sum over the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(6, 5)

    def forward(self, tokens: Tensor, skip: int | None = None) -> Tensor:
        x = self.embed(tokens)
        for number, block in enumerate(self.blocks):
            if number != skip:
                x = block(x)
        return self.head(torch.tanh(x)).float().square().sum()


def odd_model() -> Odd:
    """Always the same one."""
    torch.manual_seed(0)
    return Odd()


def tokens(rank: int, number: int, step: int) -> Tensor:
    """The tokens of a round."""
    generator = torch.Generator().manual_seed(1000 * step + 10 * number + rank)
    return torch.randint(0, 11, (4,), generator=generator)


def trained_alone(ranks: int, *, steps: int, rounds: int) -> Odd:
    """The model after the same steps in one process."""
    model = odd_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    for step in range(steps):
        for number in range(rounds):
            for rank in range(ranks):
                model(tokens(rank, number, step)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def every_width(ranks: int) -> Iterator[Widths]:
    """All widths that fit the ranks."""
    powers = [d for d in (1, 2, 4) if ranks % d == 0]
    for weights in powers:
        for gradients in powers:
            for optimizer in powers:
                if gradients % weights == 0 and optimizer % gradients == 0:
                    yield Widths(weights=weights, gradients=gradients, optimizer=optimizer)


def own_part(whole: Tensor, like: Tensor) -> Tensor:
    """What a rank that holds `like`, a DTensor, should hold of `whole`."""
    assert isinstance(like, DTensor)
    shape, offset = compute_local_shape_and_global_offset(
        like.shape, like.device_mesh, like.placements
    )
    box = tuple(slice(a, a + n) for a, n in zip(offset, shape, strict=True))
    return whole.detach()[box].reshape(shape)
