"""Who a process is among the ranks, and what a recipe says of their communication. Pure data:
neither torch nor ray."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from comms.compression.config import ReplicaConfig
from comms.outer.config import DilocoConfig, OuterWire
from comms.outer.schedule import OuterSchedule, most_fragments

IslandMethod = Literal["streaming_diloco", "diloco", "local_sgd"]

_MOST_APART = 1000
"""Times one island's share of a batch may be another's."""


@dataclass(frozen=True, kw_only=True)
class IslandConfig:
    """How islands (`parallel.island`) exchange what they learned; all islands alike."""

    method: IslandMethod = "streaming_diloco"
    """`streaming_diloco` exchanges some blocks at a time, a few bits per number, while training
    goes on (arXiv 2501.18512); `diloco` everything at once, in full, waited for (2311.08105);
    `local_sgd` takes the mean of the weights."""

    every: int = 100
    """Steps between two exchanges of the same parameters."""

    fragments: int | Literal["auto"] = "auto"
    """streaming_diloco: parts of the model that travel one after the other; divides `every`.
    `auto` takes up to 8, no more than there are blocks on a rank."""

    overlap_steps: int = 5
    """streaming_diloco: steps that go on while a part is under way; below `every` / `fragments`."""

    mixing: float = 0.5
    """streaming_diloco: share of an island's own parameters in the merge with the new global
    ones."""

    outer_lr: float = 0.7
    """streaming_diloco, diloco: learning rate of the outer SGD."""

    outer_momentum: float = 0.9
    """streaming_diloco, diloco: its Nesterov momentum."""

    wire: OuterWire = "e3m0"
    """streaming_diloco: numbers that outer gradients travel in, of 4, 8 or 32 bits."""

    shares: Literal["equal"] | tuple[float, ...] = "equal"
    """What part of every batch each island trains on, relative to the others, such as `[2, 1]`
    where the first is twice as fast: then steps of all take equally long."""

    def __post_init__(self) -> None:
        if self.method not in get_args(IslandMethod):
            raise ValueError(
                f"comms.island.method={self.method} is not known; choose one of "
                f"{get_args(IslandMethod)}"
            )
        if self.fragments != "auto" and self.fragments < 1:
            raise ValueError(
                f"comms.island.fragments={self.fragments} must be a positive integer or auto"
            )
        self._shares_rule()
        try:
            self.schedule(blocks=1)
        except ValueError as error:
            raise ValueError(f"comms.island.{error}") from None

    def _shares_rule(self) -> None:
        if self.shares == "equal":
            return
        if not self.shares or any(not 0 < share < float("inf") for share in self.shares):
            raise ValueError(
                f"comms.island.shares={list(self.shares)} must be positive numbers, one for each "
                "island, such as [2, 1]; or equal"
            )
        if max(self.shares) > _MOST_APART * min(self.shares):
            raise ValueError(
                f"comms.island.shares={list(self.shares)} differ by more than {_MOST_APART:,} times"
                "; an island with so little to do is better left out (parallel.island)"
            )

    def diloco(self) -> DilocoConfig:
        """What the method comes to; reads the keys that matter to it, and no others."""
        if self.method == "streaming_diloco":
            return DilocoConfig(
                every=self.every,
                overlap_steps=self.overlap_steps,
                mixing=self.mixing,
                outer_lr=self.outer_lr,
                outer_momentum=self.outer_momentum,
                wire=self.wire,
            )
        if self.method == "diloco":
            return DilocoConfig(
                every=self.every,
                overlap_steps=0,
                mixing=0.0,
                outer_lr=self.outer_lr,
                outer_momentum=self.outer_momentum,
                wire="fp32",
            )
        return DilocoConfig(
            every=self.every,
            overlap_steps=0,
            mixing=0.0,
            outer_lr=1.0,
            outer_momentum=0.0,
            wire="fp32",
        )

    def weights(self, islands: int) -> tuple[float, ...]:
        """The shares of so many islands over the smallest; of equal ones 1, exactly."""
        if self.shares == "equal":
            return (1.0,) * islands
        return tuple(share / min(self.shares) for share in self.shares)

    def only(self, islands: Iterable[int]) -> "IslandConfig":
        """The same for some of the islands, by their numbers; for none of them, equal shares."""
        if self.shares == "equal":
            return self
        return replace(self, shares=tuple(self.shares[n] for n in islands) or "equal")

    def schedule(self, *, blocks: int) -> OuterSchedule:
        """When parts travel, of a model of which every rank has at least `blocks` blocks.

        Raises ValueError where the steps do not fit each other.
        """
        config = self.diloco()
        fragments = 1
        if self.method == "streaming_diloco":
            fragments = (
                most_fragments(config, blocks) if self.fragments == "auto" else self.fragments
            )
        return OuterSchedule(config.every, config.overlap_steps, fragments)


@dataclass(frozen=True, kw_only=True)
class CommsConfig:
    """What travels between ranks besides what the layout asks for."""

    replica: ReplicaConfig = field(default_factory=ReplicaConfig)
    """Gradients between the copies of a model (parallel.replica), every step."""

    island: IslandConfig = field(default_factory=IslandConfig)
    """Parameters between islands (parallel.island), every so many steps."""


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

    islands: tuple[int, ...] = ()
    """The numbers of the islands that go on, of those that the run began with; none named are all
    of `parallel.island`, and where that is one there are none."""

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
