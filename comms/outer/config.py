"""How islands exchange outer updates. Pure data: neither torch nor ray."""

from dataclasses import dataclass
from typing import Literal, get_args

OuterWire = Literal["e3m0", "int8", "fp32"]
IslandLayout = Literal["same", "own"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DilocoConfig:
    """Streaming DiLoCo (arXiv 2501.18512). Defaults are its own where it gives them.

    One fragment, `overlap_steps=0, mixing=0, wire="fp32"` are DiLoCo (arXiv 2311.08105); with
    `outer_lr=1, outer_momentum=0` as well, local SGD; with `every=1` on top, data parallelism.
    Islands may differ in `every`, `overlap_steps`, `mixing` and `weight`, and in nothing else.
    """

    every: int = 100
    """Inner steps between two exchanges of the same fragment, on this island."""

    overlap_steps: int = 5
    """Inner steps that go on while a fragment is under way; 0 waits for it at once."""

    mixing: float = 0.5
    """Share of this island's own parameters in the merge with the new global ones. 0 drops what
    was learned during the overlap; 1 would never merge."""

    outer_lr: float = 0.7
    """Learning rate of the outer SGD."""

    outer_momentum: float = 0.9
    """Its Nesterov momentum."""

    wire: OuterWire = "e3m0"
    """Numbers that outer gradients travel in: 4 bits with blocks of 128, 8 bits, or all 32."""

    weight: float = 1.0
    """Share of this island in the mean, relative to the others, such as its tokens per exchange."""

    layout: IslandLayout = "same"
    """`same`: every shard is exchanged with the equal shards of the other islands. `own`: islands
    are sharded differently; a fragment is gathered inside its island, and one rank exchanges it."""

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("wire", self.wire, get_args(OuterWire)),
            ("layout", self.layout, get_args(IslandLayout)),
        ):
            if value not in allowed:
                raise ValueError(f"{name}={value} is not known. Choose one of {allowed}.")
        if self.every < 1:
            raise ValueError(f"every={self.every} must be at least 1; 30 to 500 are usual.")
        if self.overlap_steps < 0:
            raise ValueError(f"overlap_steps={self.overlap_steps} must not be negative.")
        if not 0 <= self.mixing < 1:
            raise ValueError(
                f"mixing={self.mixing} must be in [0, 1): with 1 islands would never meet. "
                "0.5 is usual, 0 is plain DiLoCo."
            )
        if not 0 <= self.outer_momentum < 1:
            raise ValueError(f"outer_momentum={self.outer_momentum} must be in [0, 1).")
        if not self.outer_lr > 0:
            raise ValueError(f"outer_lr={self.outer_lr} must be above 0; 0.4 to 1 are usual.")
        if not 0 < self.weight < float("inf"):
            raise ValueError(f"weight={self.weight} must be above 0 and finite; 1 is usual.")
