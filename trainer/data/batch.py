"""What the model is given: packed sequences as flat tensors.

Shapes: T tokens of one rank in one round, all its packed sequences one after the other, each
padded at its end to the same length. A rank without sequences gets one sequence of padding.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

IGNORED = -100
"""Label of a position that has no target."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Token tensors of one rank's round. No attention crosses a document's end."""

    tokens_T: Tensor
    """int64."""

    labels_T: Tensor
    """int64: the next token of the same document, or IGNORED."""

    positions_T: Tensor
    """int64: position inside the segment, from 0."""

    document_ends: tuple[int, ...]
    """Ascending ends of the attention documents in T; the last is T. Padding is a document."""

    sequence_ends: tuple[int, ...]
    """Ascending ends of the packed sequences in T; the last is T."""

    sequence_tokens: tuple[int, ...]
    """Real tokens of each packed sequence; its padding follows them."""

    sequence_targets: tuple[int, ...]
    """Labels of each packed sequence that are not IGNORED."""

    @property
    def num_tokens(self) -> int:
        """Input tokens without padding."""
        return sum(self.sequence_tokens)

    @property
    def num_targets(self) -> int:
        """Labels that are not IGNORED."""
        return sum(self.sequence_targets)

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its tensors on `device`; the copies do not block the host."""
        return replace(
            self,
            tokens_T=self.tokens_T.to(device, non_blocking=True),
            labels_T=self.labels_T.to(device, non_blocking=True),
            positions_T=self.positions_T.to(device, non_blocking=True),
        )
