"""Dense feed-forward."""

import torch.nn.functional as F
from torch import Tensor, nn


class SwiGlu(nn.Module):
    """Gated feed-forward (arXiv 2002.05202)."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x_TD: Tensor) -> Tensor:
        """[T, D] to [T, D], each token alone."""
        return self.down_proj(self.inner(x_TD))

    def inner(self, x_TD: Tensor) -> Tensor:
        """[T, D] to [T, intermediate]: all but the projection back."""
        return F.silu(self.gate_proj(x_TD)) * self.up_proj(x_TD)
