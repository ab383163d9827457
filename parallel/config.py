"""How one model spreads over ranks, as the recipe says it."""

from dataclasses import dataclass
from typing import Literal

Degree = int | Literal["auto"]


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """Axis sizes: `island` × `pp` × `replica` × `shard` × `tp` is the number of ranks.

    `sp` and `ep` take no ranks of their own: sequence groups and expert groups are formed among
    the data ranks (`replica` × `shard`).
    """

    island: int = 1
    """Copies of the whole that train apart, each on its part of every batch, and exchange outer
    updates every so many steps (`comms.island`): for links too slow for gradients. An island is a
    block of neighbouring ranks, whole hosts where it spans several."""

    pp: Degree = 1
    """Pipeline stages, each with some of the layers; `auto` is 1."""

    replica: Degree = "auto"
    """Copies of the sharded model that exchange gradients every step."""

    shard: Degree = "auto"
    """Ranks over which parameters, gradients and optimizer states are sharded (FSDP2)."""

    tp: Degree = 1
    """Ranks that share every matrix product (tensor parallelism); keep it inside a host. `auto`
    is 1."""

    sp: Degree = 1
    """Ranks that hold one sequence together. `auto` chooses groups of different sizes for every
    round, by the lengths of its sequences."""

    ep: Degree = 1
    """Ranks over which the experts of a layer are spread; divides `shard`. `auto` takes the most
    that divides the experts, the shard axis and a host."""

    shard_weights: Degree = "auto"
    """Ranks over which weights are sharded where that is fewer than `shard`: more memory, and
    gathers that stay on fast links. `auto` is all of `shard`."""

    shard_gradients: Degree = "auto"
    """Ranks over which gradients are sharded between rounds; a multiple of `shard_weights` that
    divides `shard`. `auto` is all of `shard`."""

    gather_int8: bool = False
    """With `shard_weights`: whether new weights travel as int8 blocks after each update."""

    reshard_after_forward: bool = True
    """Whether gathered parameters are freed between forward and backward: less memory,
    one more gather."""

    bucket_bytes: int = 32 * 1024 * 1024
    """Gradient bytes exchanged at a time over `replica` when parameters are not sharded."""

    schedule: Literal["1f1b", "interleaved", "zero_bubble"] = "1f1b"
    """Order of the rounds' forwards and backwards in a pipeline."""

    stages_per_rank: int = 2
    """Pipeline stages on each rank under `interleaved`; `zero_bubble` has two, `1f1b` one."""

    rebalance_interval_steps: int = 0
    """Steps after which experts change ranks, or are lent to others, as their loads ask for; 0
    leaves them where they are."""

    two_stage_experts: bool = True
    """Whether expert groups over several whole hosts exchange tokens inside hosts first and then
    between them: fewer and larger messages on the slow links."""

    def __post_init__(self) -> None:
        for axis, degree in self._degrees().items():
            if degree != "auto" and degree < 1:
                raise ValueError(
                    f"parallel.{axis} must be a positive integer or auto, got {degree}"
                )
        if self.bucket_bytes < 1:
            raise ValueError(f"parallel.bucket_bytes must be positive, got {self.bucket_bytes}")
        if self.rebalance_interval_steps < 0:
            raise ValueError(
                "parallel.rebalance_interval_steps must not be negative, got "
                f"{self.rebalance_interval_steps}; 0 never moves experts"
            )
        if self.stages_per_rank < 1:
            raise ValueError(
                f"parallel.stages_per_rank must be positive, got {self.stages_per_rank}"
            )

    def _degrees(self) -> dict[str, Degree]:
        return {
            "island": self.island,
            "pp": self.pp,
            "replica": self.replica,
            "shard": self.shard,
            "tp": self.tp,
            "sp": self.sp,
            "ep": self.ep,
            "shard_weights": self.shard_weights,
            "shard_gradients": self.shard_gradients,
        }
