"""What every block is told about the tokens of one forward.

S packed sequences, T tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from parallel.attention import AttentionFn, packed_attention
from trainer.data.batch import Batch


class SequenceWeights:
    """Which tokens the router's statistics count, and how much each sequence weighs.

    A plain class: FSDP2's mixed precision casts tensors it finds in tuples and dataclasses.
    """

    def __init__(
        self,
        *,
        mean_ST: Tensor,
        targets_S: Tensor,
        real_T: Tensor,
        sum_over_group: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.mean_ST = mean_ST
        """fp32: 1/n on the n real tokens of a sequence, 0 elsewhere: a product with it averages,
        over the ranks that hold the sequence together if there are several."""
        self.targets_S = targets_S
        """fp32: targets of each sequence."""
        self.real_T = real_T
        """fp32: 1 on real tokens, 0 on padding."""
        self.sum_over_group = sum_over_group
        """Sums an fp32 tensor over the ranks that hold the sequences together; None for one."""


@dataclass(frozen=True, kw_only=True)
class Packing:
    """Where documents and sequences end, and how ranks that share them work together."""

    document_ends: tuple[int, ...]
    attend: AttentionFn = packed_attention
    """What mixes the tokens."""

    sequences: SequenceWeights | None = None
    """None where no router statistics are wanted."""

    experts_Tk: Tensor | None = None
    """int64: experts that tokens visit in the next layer with experts, whatever its router says; -1
    leaves it to the router. None leaves all."""


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """How the ranks of one sequence group compute one stream together."""

    attend: AttentionFn = packed_attention
    sum_over_group: Callable[[Tensor], Tensor] | None = None
    """Sums an fp32 tensor over the group; None for a group of one rank."""


def sequence_weights(
    batch: Batch, sum_over_group: Callable[[Tensor], Tensor] | None = None
) -> SequenceWeights:
    """The weights of `batch`, on its device."""
    device, num_sequences = batch.tokens_T.device, len(batch.sequence_ends)
    mean_ST = torch.zeros(num_sequences, batch.tokens_T.shape[0], device=device)
    targets_S = torch.zeros(num_sequences, device=device)
    start = 0
    # Fills with host numbers are queued; building tensors on the host would wait for the device.
    for s, end in enumerate(batch.sequence_ends):
        tokens = batch.sequence_tokens[s]
        for first, last in _held(batch, start, start + tokens):
            mean_ST[s, first:last].fill_(1.0 / tokens)
        targets_S[s].fill_(batch.sequence_targets[s])
        start = end
    return SequenceWeights(
        mean_ST=mean_ST,
        targets_S=targets_S,
        real_T=(mean_ST.sum(dim=0) > 0).float(),
        sum_over_group=sum_over_group,
    )


def _held(batch: Batch, start: int, stop: int) -> list[tuple[int, int]]:
    """Where the tensors of `batch` hold the tokens [start, stop) of its stream."""
    found, at = [], 0
    for first, last in batch.stretches or ((0, batch.sequence_ends[-1]),):
        begin, end = max(start, first), min(stop, last)
        if begin < end:
            found.append((at + begin - first, at + end - first))
        at += last - first
    return found
