"""What lies where in a flat gradient, so that state can be told apart by parameter."""

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Piece:
    """This rank's part of one parameter."""

    parameter: nn.Parameter
    start: int
    """Its first entry in the flat gradient."""

    numel: int


@dataclass(frozen=True)
class FlatGradient:
    """One flat gradient; entries outside all pieces are padding."""

    numel: int
    shapes: tuple[tuple[int, ...], ...] | None
    """Of the tensors in it, padding included, as `Exchange.start` is told."""

    pieces: tuple[Piece, ...]
