"""The experts of one layer applied to tokens that are already sorted by expert.

R rows (token and expert pairs) sorted by expert, E experts, D model width, F expert width,
N output width.

Guarantees, each asserted in tests/trainer/model/test_experts.py:
- no row is dropped, whatever the counts, and rows of one expert do not affect another's;
- an expert without rows gets a gradient of exact zeros, so that all ranks reduce the same tensors.
"""

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from parallel.experts.dispatch import Exchange, Stay
from parallel.tensor.layers import local


class ExpertsFn(Protocol):
    """Apply SwiGLU experts to sorted rows."""

    def __call__(
        self, x_RD: Tensor, counts_E: Tensor, gate_up_EDF: Tensor, down_EFD: Tensor
    ) -> Tensor:
        """[R, D] in the order of the input. `counts_E` is int64 and sums to R.

        The last dim of `gate_up_EDF` is 2 F wide, gate before up.
        """


class Experts(nn.Module):
    """Stacked weights of the routed experts, or of those that this rank holds."""

    def __init__(self, num_experts: int, row_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.num_experts = num_experts
        """Of all ranks."""
        self.gate_up_proj = nn.Parameter(torch.empty(num_experts, row_size, 2 * intermediate_size))
        self.down_proj = nn.Parameter(torch.empty(num_experts, intermediate_size, row_size))
        self.expert_slot: Tensor
        """int64 [E]: the row of the stacked weights that holds each expert. Saved with them, so
        that experts may have moved."""
        self.register_buffer("expert_slot", torch.arange(num_experts))
        self.exchange: Exchange = Stay()
        """How rows find their experts; expert parallelism puts its own here."""
        self.apply_experts: ExpertsFn = grouped_swiglu
        """How rows meet weights."""

    def forward(self, x_RD: Tensor, counts_E: Tensor) -> Tensor:
        """[R, D] rows sorted by slot to [R, D] in the same order. Under expert parallelism these
        are the rows that came to this rank, and the counts of its slots."""
        gate_up_EDF = self.exchange.weights(local(self.gate_up_proj))
        down_EFD = self.exchange.weights(local(self.down_proj))
        return self.apply_experts(x_RD, counts_E, gate_up_EDF, down_EFD)


@torch.compiler.disable
def grouped_swiglu(x_RD: Tensor, counts_E: Tensor, gate_up_EDF: Tensor, down_EFD: Tensor) -> Tensor:
    """The `ExpertsFn` of one device.

    On CUDA in bf16 the grouped kernel reads the counts on the device; elsewhere the host reads them
    and multiplies expert by expert.
    """
    gate_up_EDF, down_EFD = gate_up_EDF.to(x_RD.dtype), down_EFD.to(x_RD.dtype)
    if _fits_grouped_kernel(x_RD, gate_up_EDF, down_EFD):
        ends_E = counts_E.cumsum(0, dtype=torch.int32)
        gate, up = F.grouped_mm(x_RD, gate_up_EDF, offs=ends_E).chunk(2, dim=-1)
        return F.grouped_mm(F.silu(gate) * up, down_EFD, offs=ends_E)
    counts = counts_E.tolist()
    gate, up = _PerExpertMatmul.apply(x_RD, gate_up_EDF, counts).chunk(2, dim=-1)
    return _PerExpertMatmul.apply(F.silu(gate) * up, down_EFD, counts)


def _fits_grouped_kernel(x_RD: Tensor, *weights: Tensor) -> bool:
    # The kernel wants rows of a multiple of 16 bytes.
    aligned = all(size % 8 == 0 for w in weights for size in w.shape[1:])
    # Without rows, which only expert parallelism brings about, there is nothing to launch.
    return x_RD.is_cuda and x_RD.dtype == torch.bfloat16 and aligned and x_RD.shape[0] > 0


class _PerExpertMatmul(Function):
    """out[rows of e] = x[rows of e] @ weight[e].

    Indexing the stacked weight under autograd would build a zero gradient of the whole stack per
    expert; here each expert's gradient is written in place.
    """

    @staticmethod
    def forward(ctx: Any, x_RD: Tensor, weight_EDN: Tensor, counts: list[int]) -> Tensor:
        ctx.save_for_backward(x_RD, weight_EDN)
        ctx.counts = counts
        out_RN = x_RD.new_empty(x_RD.shape[0], weight_EDN.shape[2])
        start = 0
        for expert, count in enumerate(counts):
            rows = slice(start, start + count)
            if count:
                torch.mm(x_RD[rows], weight_EDN[expert], out=out_RN[rows])
            start += count
        return out_RN

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RN: Tensor) -> tuple[Tensor, Tensor, None]:
        x_RD, weight_EDN = ctx.saved_tensors
        grad_RN = grad_RN.contiguous()
        grad_x_RD, grad_weight_EDN = torch.empty_like(x_RD), torch.empty_like(weight_EDN)
        start = 0
        for expert, count in enumerate(ctx.counts):
            rows = slice(start, start + count)
            if count:
                torch.mm(grad_RN[rows], weight_EDN[expert].t(), out=grad_x_RD[rows])
                torch.mm(x_RD[rows].t(), grad_RN[rows], out=grad_weight_EDN[expert])
            else:
                grad_weight_EDN[expert].zero_()
            start += count
        return grad_x_RD, grad_weight_EDN, None
