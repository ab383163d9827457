"""How one model spreads over ranks, as the recipe says it."""

from dataclasses import dataclass
from typing import Literal

Degree = int | Literal["auto"]


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """Axis sizes; their product is the number of ranks."""

    replica: Degree = "auto"
    """Copies of the sharded model that exchange gradients every step."""

    shard: Degree = "auto"
    """Ranks over which parameters, gradients and optimizer states are sharded (FSDP2)."""

    reshard_after_forward: bool = True
    """Whether gathered parameters are freed between forward and backward: less memory,
    one more gather."""

    bucket_bytes: int = 32 * 1024 * 1024
    """Gradient bytes exchanged at a time over `replica` when parameters are not sharded."""

    def __post_init__(self) -> None:
        for axis in ("replica", "shard"):
            degree = {"replica": self.replica, "shard": self.shard}[axis]
            if degree != "auto" and degree < 1:
                raise ValueError(
                    f"parallel.{axis} must be a positive integer or auto, got {degree}"
                )
        if self.bucket_bytes < 1:
            raise ValueError(f"parallel.bucket_bytes must be positive, got {self.bucket_bytes}")
