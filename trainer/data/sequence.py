"""Packed sequences without their tokens: cheap, known to every rank, free of torch."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """A stretch of one document inside a packed sequence."""

    block: int
    document: int
    """Position of the document in its block."""

    start: int
    """First input token of the stretch, counted in the document."""

    length: int
    """Input tokens of the stretch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedSequence:
    """One sequence of the global batch. At most `seq_len` tokens."""

    segments: tuple[Segment, ...]
    num_targets: int
    """Input tokens whose next token is trained on."""

    @property
    def num_tokens(self) -> int:
        """Input tokens, padding not counted."""
        return sum(segment.length for segment in self.segments)
