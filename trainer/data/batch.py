"""What the model is given: packed sequences as flat tensors.

A stream is the packed sequences of one sequence group in one round, one after the other, with
padding at the end of some. A group of one rank holds all of it; otherwise each rank holds some
stretches. A rank without sequences gets a stream of padding.

Shapes: T tokens of one rank in one round.
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
    """Ascending ends of the attention documents, one after the other. Padding is a document."""

    sequence_ends: tuple[int, ...]
    """Ascending ends of the packed sequences in the stream."""

    sequence_tokens: tuple[int, ...]
    """Real tokens of each packed sequence; its padding follows them."""

    sequence_targets: tuple[int, ...]
    """Labels of each packed sequence that are not IGNORED."""

    stretches: tuple[tuple[int, int], ...] = ()
    """Which stretches [start, stop) of the stream the tensors hold, ascending; empty: all of it."""

    experts_TLk: Tensor | None = None
    """int64: experts that tokens visit in each of the L mixture layers, whatever its router says;
    -1 leaves it to the router. None leaves all."""

    rows_E: Tensor | None = None
    """int64: which row of the tensors is at each place of the documents, where documents share
    their beginnings. None: the documents are the stream."""

    @property
    def num_tokens(self) -> int:
        """Input tokens of the stream without padding."""
        return sum(self.sequence_tokens)

    @property
    def num_targets(self) -> int:
        """Labels of the stream that are not IGNORED."""
        return sum(self.sequence_targets)

    def share(self, stretches: tuple[tuple[int, int], ...]) -> "Batch":
        """What the rank that holds these stretches of this whole stream is given."""
        assert not self.stretches, "only a whole stream can be shared out"
        assert self.rows_E is None, "documents that share rows belong to one rank"
        kept = [slice(start, stop) for start, stop in stretches]
        return replace(
            self,
            tokens_T=torch.cat([self.tokens_T[piece] for piece in kept]),
            labels_T=torch.cat([self.labels_T[piece] for piece in kept]),
            positions_T=torch.cat([self.positions_T[piece] for piece in kept]),
            stretches=stretches,
            experts_TLk=None
            if self.experts_TLk is None
            else torch.cat([self.experts_TLk[piece] for piece in kept]),
        )

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its tensors on `device`; the copies do not block the host."""
        return replace(
            self,
            tokens_T=self.tokens_T.to(device, non_blocking=True),
            labels_T=self.labels_T.to(device, non_blocking=True),
            positions_T=self.positions_T.to(device, non_blocking=True),
            experts_TLk=None
            if self.experts_TLk is None
            else self.experts_TLk.to(device, non_blocking=True),
            rows_E=None if self.rows_E is None else self.rows_E.to(device, non_blocking=True),
        )
