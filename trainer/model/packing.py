"""What every block is told about the tokens of one forward.

S packed sequences, T tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.data.batch import Batch


class SequenceWeights:
    """Which tokens the router's statistics count, and how much each sequence weighs.

    A plain class: FSDP2's mixed precision casts tensors it finds in tuples and dataclasses.
    """

    def __init__(self, *, mean_ST: Tensor, targets_S: Tensor, real_T: Tensor) -> None:
        self.mean_ST = mean_ST
        """fp32: 1/n on the n real tokens of a sequence, 0 elsewhere: a product with it averages."""
        self.targets_S = targets_S
        """fp32: targets of each sequence."""
        self.real_T = real_T
        """fp32: 1 on real tokens, 0 on padding."""


@dataclass(frozen=True, kw_only=True)
class Packing:
    """Where documents and sequences end."""

    document_ends: tuple[int, ...]
    sequences: SequenceWeights | None = None
    """None where no router statistics are wanted."""


def sequence_weights(batch: Batch) -> SequenceWeights:
    """The weights of `batch`, on its device."""
    device, num_sequences = batch.tokens_T.device, len(batch.sequence_ends)
    mean_ST = torch.zeros(num_sequences, batch.sequence_ends[-1], device=device)
    targets_S = torch.zeros(num_sequences, device=device)
    start = 0
    # Fills with host numbers are queued; building tensors on the host would wait for the device.
    for s, end in enumerate(batch.sequence_ends):
        tokens = batch.sequence_tokens[s]
        if tokens:
            mean_ST[s, start : start + tokens].fill_(1.0 / tokens)
        targets_S[s].fill_(batch.sequence_targets[s])
        start = end
    return SequenceWeights(
        mean_ST=mean_ST, targets_S=targets_S, real_T=(mean_ST.sum(dim=0) > 0).float()
    )
