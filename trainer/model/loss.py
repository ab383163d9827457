"""Cross entropy, and log-probabilities of tokens, that never hold all logits.

T tokens, C tokens of one chunk, D model width, V vocabulary.

Gradients of cross entropy are computed in the forward, chunk by chunk, while the logits are there
(the idea of arXiv 2410.10989 and 2411.09009), so memory is O(C V) and nothing is computed twice.
Those of log-probabilities depend on what is made of them: their logits are computed again.
"""

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from parallel.tensor.axis import TensorAxis
from parallel.tensor.layers import local
from parallel.vocab import (
    vocabulary_parallel_log_probs,
    vocabulary_parallel_logits,
    vocabulary_parallel_loss_sum,
)
from trainer.data.batch import IGNORED


class Vocabulary(Protocol):
    """How hidden states meet the output projection [V, D]."""

    def loss_sum(
        self, hidden_TD: Tensor, weight_VD: Tensor, labels_T: Tensor, chunk_tokens: int
    ) -> Tensor:
        """See `token_loss_sum`."""

    def log_probs(
        self, hidden_TD: Tensor, weight_VD: Tensor, labels_T: Tensor, chunk_tokens: int
    ) -> Tensor:
        """See `token_log_probs`."""

    def logits(self, hidden_TD: Tensor, weight_VD: Tensor) -> Tensor:
        """Scores of all tokens of the vocabulary: [T, V]."""


class WholeVocabulary:
    """The `Vocabulary` of a rank that holds all of it."""

    def loss_sum(
        self, hidden_TD: Tensor, weight_VD: Tensor, labels_T: Tensor, chunk_tokens: int
    ) -> Tensor:
        """The loss, on this rank alone."""
        return token_loss_sum(hidden_TD, weight_VD, labels_T, chunk_tokens)

    def log_probs(
        self, hidden_TD: Tensor, weight_VD: Tensor, labels_T: Tensor, chunk_tokens: int
    ) -> Tensor:
        """[T], on this rank alone."""
        return token_log_probs(hidden_TD, weight_VD, labels_T, chunk_tokens)

    def logits(self, hidden_TD: Tensor, weight_VD: Tensor) -> Tensor:
        """[T, V]."""
        return F.linear(hidden_TD, weight_VD)


class SplitVocabulary:
    """The `Vocabulary` of ranks that hold a part of it each; all of them call it together."""

    def __init__(self, axis: TensorAxis) -> None:
        self._axis = axis

    def loss_sum(
        self, hidden_TD: Tensor, weight_VD: Tensor, labels_T: Tensor, chunk_tokens: int
    ) -> Tensor:
        """The loss, bitwise the same on all ranks of the axis."""
        return vocabulary_parallel_loss_sum(
            hidden_TD, local(weight_VD), labels_T, chunk_tokens, self._axis
        )

    def log_probs(
        self, hidden_TD: Tensor, weight_VD: Tensor, labels_T: Tensor, chunk_tokens: int
    ) -> Tensor:
        """[T], bitwise the same on all ranks of the axis."""
        return vocabulary_parallel_log_probs(
            hidden_TD, local(weight_VD), labels_T, chunk_tokens, self._axis
        )

    def logits(self, hidden_TD: Tensor, weight_VD: Tensor) -> Tensor:
        """[T, V] on every rank."""
        return vocabulary_parallel_logits(hidden_TD, local(weight_VD), self._axis)


def token_loss_sum(
    hidden_TD: Tensor, weight_VD: Tensor, labels_T: Tensor, chunk_tokens: int
) -> Tensor:
    """Sum of -log softmax(hidden @ weight^T)[label] over labels that are not IGNORED.

    An fp32 scalar; softmax is in fp32 whatever the inputs' dtype. Exactly 0, with zero gradients,
    where no label is left. `chunk_tokens` tokens have their logits in memory at a time.
    """
    wanted = torch.is_grad_enabled() and (hidden_TD.requires_grad or weight_VD.requires_grad)
    weight_VD = weight_VD.to(hidden_TD.dtype)
    if not wanted:
        return _loss_and_gradients(hidden_TD, weight_VD, labels_T, chunk_tokens, False)[0]
    return _ChunkedCrossEntropy.apply(hidden_TD, weight_VD, labels_T, chunk_tokens)


def token_log_probs(
    hidden_TD: Tensor, weight_VD: Tensor, labels_T: Tensor, chunk_tokens: int
) -> Tensor:
    """[T]: log softmax(hidden @ weight^T)[label], fp32; 0, without gradient, where it is IGNORED.

    `chunk_tokens` tokens have their logits in memory at a time, in forward and in backward.
    """
    return _ChunkedLogProbs.apply(hidden_TD, weight_VD.to(hidden_TD.dtype), labels_T, chunk_tokens)


class _ChunkedLogProbs(Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_TD: Tensor, weight_VD: Tensor, labels_T: Tensor, chunk_tokens: int
    ) -> Tensor:
        logp_T = hidden_TD.new_zeros(labels_T.shape, dtype=torch.float32)
        normaliser_T = torch.zeros_like(logp_T)
        for rows in _chunks(hidden_TD, chunk_tokens):
            logits_CV = (hidden_TD[rows] @ weight_VD.t()).float()
            normaliser_T[rows] = logits_CV.logsumexp(dim=-1)
            target_C1 = labels_T[rows].clamp(min=0).unsqueeze(1)
            logp_T[rows] = logits_CV.gather(1, target_C1).squeeze(1) - normaliser_T[rows]
        ctx.save_for_backward(hidden_TD, weight_VD, labels_T, normaliser_T)
        ctx.chunk_tokens = chunk_tokens
        return torch.where(labels_T != IGNORED, logp_T, 0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_T: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden_TD, weight_VD, labels_T, normaliser_T = ctx.saved_tensors
        grad_hidden_TD = torch.empty_like(hidden_TD)
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32)
        grad_T = torch.where(labels_T != IGNORED, grad_T, 0.0)
        for rows in _chunks(hidden_TD, ctx.chunk_tokens):
            logits_CV = (hidden_TD[rows] @ weight_VD.t()).float()
            grad_C1 = grad_T[rows].unsqueeze(1)
            grad_CV = logits_CV.sub_(normaliser_T[rows].unsqueeze(1)).exp_().mul_(-grad_C1)
            grad_CV.scatter_add_(1, labels_T[rows].clamp(min=0).unsqueeze(1), grad_C1)
            grad_CV = grad_CV.to(hidden_TD.dtype)
            torch.mm(grad_CV, weight_VD, out=grad_hidden_TD[rows])
            _add_product(grad_weight_VD, grad_CV.t(), hidden_TD[rows])
        return grad_hidden_TD, grad_weight_VD.to(weight_VD.dtype), None, None


def _chunks(hidden_TD: Tensor, chunk_tokens: int) -> list[slice]:
    starts = range(0, hidden_TD.shape[0], chunk_tokens)
    return [slice(start, start + chunk_tokens) for start in starts]


class _ChunkedCrossEntropy(Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_TD: Tensor, weight_VD: Tensor, labels_T: Tensor, chunk_tokens: int
    ) -> Tensor:
        loss, grad_hidden_TD, grad_weight_VD = _loss_and_gradients(
            hidden_TD, weight_VD, labels_T, chunk_tokens, True
        )
        ctx.save_for_backward(grad_hidden_TD, grad_weight_VD)
        ctx.weight_dtype = weight_VD.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden_TD, grad_weight_VD = ctx.saved_tensors
        # Scaled in fp32: in bf16 the divisor itself would be off by up to 0.4 %.
        scaled_TD = (grad_hidden_TD.float() * grad).to(grad_hidden_TD.dtype)
        return scaled_TD, (grad_weight_VD * grad).to(ctx.weight_dtype), None, None


def _loss_and_gradients(
    hidden_TD: Tensor, weight_VD: Tensor, labels_T: Tensor, chunk_tokens: int, gradients: bool
) -> tuple[Tensor, Tensor, Tensor]:
    loss = hidden_TD.new_zeros((), dtype=torch.float32)
    grad_hidden_TD = torch.empty_like(hidden_TD) if gradients else hidden_TD
    # Chunks are summed in fp32: bf16 would lose what later chunks add.
    grad_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if gradients else weight_VD
    for start in range(0, hidden_TD.shape[0], chunk_tokens):
        rows = slice(start, start + chunk_tokens)
        hidden_CD, labels_C = hidden_TD[rows], labels_T[rows]
        kept_C1 = (labels_C != IGNORED).unsqueeze(1)
        target_C1 = labels_C.clamp(min=0).unsqueeze(1)
        logits_CV = (hidden_CD @ weight_VD.t()).float()
        log_p_CV = torch.log_softmax(logits_CV, dim=-1)
        loss -= (log_p_CV.gather(1, target_C1) * kept_C1).sum()
        if gradients:
            grad_CV = log_p_CV.exp_()
            grad_CV.scatter_add_(1, target_C1, grad_CV.new_full(target_C1.shape, -1.0))
            grad_CV = grad_CV.mul_(kept_C1).to(hidden_CD.dtype)
            torch.mm(grad_CV, weight_VD, out=grad_hidden_TD[rows])
            _add_product(grad_weight_VD, grad_CV.t(), hidden_CD)
    return loss, grad_hidden_TD, grad_weight_VD


def _add_product(total_VD: Tensor, left_VC: Tensor, right_CD: Tensor) -> None:
    if left_VC.dtype == total_VD.dtype:
        total_VD.addmm_(left_VC, right_CD)
    else:
        total_VD.add_(left_VC @ right_CD)
