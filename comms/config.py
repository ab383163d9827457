"""Who a process is among the ranks, and what a recipe says of their communication. Pure data:
neither torch nor ray."""

from dataclasses import dataclass, field
from typing import Literal

from comms.compression.config import ReplicaConfig


@dataclass(frozen=True, kw_only=True)
class CommsConfig:
    """What travels between ranks besides what the layout asks for."""

    replica: ReplicaConfig = field(default_factory=ReplicaConfig)
    """Gradients between the copies of a model (parallel.replica), every step."""


@dataclass(frozen=True, kw_only=True)
class RankEnvironment:
    """Who this process is, and where the ranks meet."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    host: str
    """Name or address of this machine, for messages."""

    master_address: str
    master_port: int
    device_type: Literal["cpu", "cuda"] = "cpu"
    threads: int = 1
    """Compute threads of this process."""

    device_index: int | None = None
    """Position of this rank's device among those its process sees; None where that is the local
    rank."""

    generation: int = 0
    """How often the ranks of this run have been put together anew."""

    @classmethod
    def on_this_machine(cls, rank: int, ranks: int, port: int) -> "RankEnvironment":
        """Rank `rank` of `ranks` CPU processes that are all here and meet on loopback."""
        return cls(
            rank=rank,
            world_size=ranks,
            local_rank=rank,
            local_world_size=ranks,
            host="127.0.0.1",
            master_address="127.0.0.1",
            master_port=port,
        )

    @property
    def device_name(self) -> str:
        """The device this rank computes on, as torch names it."""
        if self.device_type == "cpu":
            return "cpu"
        return f"cuda:{self.local_rank if self.device_index is None else self.device_index}"
