"""Cross entropy, log-probabilities and logits where every rank holds a part of the vocabulary.

T tokens, C tokens of one chunk, D model width, V vocabulary, v = V / ranks of it on this rank,
N ranks.

Guarantees, each asserted in tests/parallel/test_vocab.py:
- loss and log-probabilities are bitwise the same on all ranks, and so is the gradient of the hidden
  states;
- nobody ever holds more than C v logits, and two exchanges per chunk are all there are: 8 bytes per
  token to know the normaliser, and the gradient of the hidden states, hidden behind the next
  chunk;
- no label left gives exactly 0 with zero gradients.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from comms.ledger import Started
from parallel.tensor.axis import TensorAxis

IGNORED_LABEL = -100
"""Label of a token without a target, as in PyTorch."""


@torch.compiler.disable
def vocabulary_parallel_loss_sum(
    hidden_TD: Tensor, weight_vD: Tensor, labels_T: Tensor, chunk_tokens: int, axis: TensorAxis
) -> Tensor:
    """Sum of -log softmax(hidden @ weight^T)[label] over labels that are not IGNORED_LABEL.

    `weight_vD` is this rank's rows of the whole weight; hidden states and labels are the same on
    all ranks of the axis, which all call it. An fp32 scalar; softmax is in fp32 whatever the
    inputs' dtype. Gradients are computed in the forward, as in the one-rank loss.

        loss = vocabulary_parallel_loss_sum(hidden, my_rows, labels, 1024, axis)
    """
    wanted = torch.is_grad_enabled() and (hidden_TD.requires_grad or weight_vD.requires_grad)
    weight_vD = weight_vD.to(hidden_TD.dtype)
    chunks = _Chunks(hidden_TD, weight_vD, labels_T, chunk_tokens, axis)
    return _SplitCrossEntropy.apply(hidden_TD, weight_vD, chunks) if wanted else chunks.loss()


@torch.compiler.disable
def vocabulary_parallel_logits(hidden_TD: Tensor, weight_vD: Tensor, axis: TensorAxis) -> Tensor:
    """[T, V], the same on all ranks of the axis, which all call it."""
    part_Tv = F.linear(axis.begin_region(hidden_TD), weight_vD.to(hidden_TD.dtype))
    return axis.gather_last(part_Tv)


@torch.compiler.disable
def vocabulary_parallel_log_probs(
    hidden_TD: Tensor, weight_vD: Tensor, labels_T: Tensor, chunk_tokens: int, axis: TensorAxis
) -> Tensor:
    """[T]: log softmax(hidden @ weight^T)[label], fp32; 0, without gradient, where the label is
    IGNORED_LABEL. As `vocabulary_parallel_loss_sum` otherwise, but that what all ranks make of the
    log-probabilities must be the same, and backward computes the logits again.

        logp_T = vocabulary_parallel_log_probs(hidden, my_rows, labels, 1024, axis)
    """
    weight_vD = weight_vD.to(hidden_TD.dtype)
    chunks = _Chunks(hidden_TD, weight_vD, labels_T, chunk_tokens, axis)
    return _SplitLogProbs.apply(hidden_TD, weight_vD, chunks)


class _SplitLogProbs(Function):
    @staticmethod
    def forward(ctx: Any, hidden_TD: Tensor, weight_vD: Tensor, chunks: "_Chunks") -> Tensor:
        logp_T, normaliser_T = chunks.log_probs()
        ctx.save_for_backward(hidden_TD, weight_vD, chunks.labels_T, normaliser_T)
        ctx.chunk_tokens, ctx.axis = chunks.chunk_tokens, chunks.axis
        return logp_T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_T: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden_TD, weight_vD, labels_T, normaliser_T = ctx.saved_tensors
        chunks = _Chunks(hidden_TD, weight_vD, labels_T, ctx.chunk_tokens, ctx.axis)
        grad_hidden_TD, grad_weight_vD = chunks.gradients(
            chunks.logits_gradient_again(rows, normaliser_T[rows], grad_T[rows])
            for rows in chunks.rows
        )
        return grad_hidden_TD, grad_weight_vD.to(weight_vD.dtype), None


class _SplitCrossEntropy(Function):
    @staticmethod
    def forward(ctx: Any, hidden_TD: Tensor, weight_vD: Tensor, chunks: "_Chunks") -> Tensor:
        loss, grad_hidden_TD, grad_weight_vD = chunks.loss_and_gradients()
        ctx.save_for_backward(grad_hidden_TD, grad_weight_vD)
        ctx.weight_dtype = weight_vD.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_hidden_TD, grad_weight_vD = ctx.saved_tensors
        # Scaled in fp32: in bf16 the divisor itself would be off by up to 0.4 %.
        scaled_TD = (grad_hidden_TD.float() * grad).to(grad_hidden_TD.dtype)
        return scaled_TD, (grad_weight_vD * grad).to(ctx.weight_dtype), None


class _Chunks:
    """One evaluation, chunk by chunk."""

    def __init__(
        self,
        hidden_TD: Tensor,
        weight_vD: Tensor,
        labels_T: Tensor,
        chunk_tokens: int,
        axis: TensorAxis,
    ) -> None:
        self.hidden_TD = hidden_TD
        self.weight_vD = weight_vD
        self.labels_T = labels_T
        self.chunk_tokens = chunk_tokens
        self.axis = axis
        starts = range(0, hidden_TD.shape[0], chunk_tokens)
        self.rows = [slice(start, start + chunk_tokens) for start in starts]

    def loss(self) -> Tensor:
        """The loss alone."""
        total = self.hidden_TD.new_zeros((), dtype=torch.float32)
        for rows in self.rows:
            total += _Chunk(self, rows).loss
        return total

    def log_probs(self) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the labels, and the normalisers that they were made with: [T]."""
        logp_T = self.hidden_TD.new_zeros(self.labels_T.shape, dtype=torch.float32)
        normaliser_T = torch.zeros_like(logp_T)
        for rows in self.rows:
            chunk = _Chunk(self, rows)
            logp_T[rows] = chunk.logp_C
            normaliser_T[rows] = chunk.normaliser_C
        return logp_T, normaliser_T

    def loss_and_gradients(self) -> tuple[Tensor, Tensor, Tensor]:
        """The loss, and its gradients as `gradients` gives them."""
        total = self.hidden_TD.new_zeros((), dtype=torch.float32)

        def logits_gradients() -> Iterator[Tensor]:
            for rows in self.rows:
                chunk = _Chunk(self, rows)
                total.add_(chunk.loss)
                yield chunk.logits_gradient()

        return total, *self.gradients(logits_gradients())

    def logits_gradient_again(self, rows: slice, normaliser_C: Tensor, grad_C: Tensor) -> Tensor:
        """Of one chunk's logits, which are computed again, from that of its log-probabilities."""
        labels_C = self.labels_T[rows]
        held_C1, target_C1 = _own_targets(labels_C, self.weight_vD.shape[0], self.axis)
        grad_C1 = torch.where(labels_C != IGNORED_LABEL, grad_C, 0.0).unsqueeze(1)
        logits_Cv = (self.hidden_TD[rows] @ self.weight_vD.t()).float()
        grad_Cv = logits_Cv.sub_(normaliser_C.unsqueeze(1)).exp_().mul_(-grad_C1)
        return grad_Cv.scatter_add_(1, target_C1, grad_C1 * held_C1)

    def gradients(self, logits_gradients: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
        """From those of the chunks' logits, in order: the gradient of the hidden states, summed
        over ranks, and that of this rank's weight, in fp32: bf16 would lose what later chunks
        add."""
        grad_hidden_TD = torch.empty_like(self.hidden_TD, memory_format=torch.contiguous_format)
        grad_weight_vD = torch.zeros_like(self.weight_vD, dtype=torch.float32)
        sums: list[Started] = []
        for rows, whole_Cv in zip(self.rows, logits_gradients, strict=True):
            grad_Cv = whole_Cv.to(self.hidden_TD.dtype)
            torch.mm(grad_Cv, self.weight_vD, out=grad_hidden_TD[rows])
            sums.append(self.axis.start_all_reduce(grad_hidden_TD[rows]))
            _add_product(grad_weight_vD, grad_Cv.t(), self.hidden_TD[rows])
        self.axis.finish(sums)
        return grad_hidden_TD, grad_weight_vD


class _Chunk:
    """Logits of a few tokens over this rank's vocabulary, with the normaliser over all of it."""

    def __init__(self, chunks: _Chunks, rows: slice) -> None:
        labels_C, axis = chunks.labels_T[rows], chunks.axis
        self._kept_C = labels_C != IGNORED_LABEL
        self._held_C1, self._target_C1 = _own_targets(labels_C, chunks.weight_vD.shape[0], axis)
        self._logits_Cv = (chunks.hidden_TD[rows] @ chunks.weight_vD.t()).float()
        target_C1 = self._logits_Cv.gather(1, self._target_C1).masked_fill(~self._held_C1, 0.0)
        # One exchange instead of a maximum and then sums: the logarithm of a part's sum is as
        # safe from overflow as the maximum is.
        part_2C = torch.stack((self._logits_Cv.logsumexp(dim=-1), target_C1.squeeze(1)))
        parts_N2C = axis.all_gather(part_2C)
        self.normaliser_C = parts_N2C[:, 0].logsumexp(dim=0)
        self.logp_C = (parts_N2C[:, 1].sum(dim=0) - self.normaliser_C) * self._kept_C
        self.loss = -self.logp_C.sum()

    def logits_gradient(self) -> Tensor:
        """softmax minus the target, zero where there is none; takes the place of the logits."""
        grad_Cv = self._logits_Cv.sub_(self.normaliser_C.unsqueeze(1)).exp_()
        grad_Cv.scatter_add_(1, self._target_C1, -self._held_C1.to(grad_Cv.dtype))
        return grad_Cv.mul_(self._kept_C.unsqueeze(1))


def _own_targets(labels_C: Tensor, size: int, axis: TensorAxis) -> tuple[Tensor, Tensor]:
    """Whether a label is in this rank's part of the vocabulary, and where; each [C, 1]."""
    own_C = labels_C - axis.rank * size
    held_C = (labels_C != IGNORED_LABEL) & (own_C >= 0) & (own_C < size)
    return held_C.unsqueeze(1), own_C.clamp(0, size - 1).unsqueeze(1)


def _add_product(total_vD: Tensor, left_vC: Tensor, right_CD: Tensor) -> None:
    if left_vC.dtype == total_vD.dtype:
        total_vD.addmm_(left_vC, right_CD)
    else:
        total_vD.add_(left_vC @ right_CD)
