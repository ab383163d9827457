"""Pure: the cold choice of axis sizes, and which ranks meet on which axis.

Guarantees, each asserted in tests/parallel/test_layout.py:
- every rank has exactly one coordinate per axis, and coordinates name exactly one rank;
- the ranks of one axis line partition the world;
- `shard` varies fastest, so that sharding stays inside a host where it can.
"""

from dataclasses import dataclass

from parallel.config import Degree, ParallelConfig


def divisors(number: int) -> list[int]:
    """All positive divisors, ascending."""
    return [d for d in range(1, number + 1) if number % d == 0]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Axis sizes of a run. Changing it reshards the model."""

    replica: int = 1
    shard: int = 1

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.replica * self.shard

    def coordinates(self, rank: int) -> dict[str, int]:
        """Where `rank` stands on each axis."""
        if not 0 <= rank < self.world_size:
            raise ValueError(f"rank {rank} is outside 0..{self.world_size - 1}")
        return {"replica": rank // self.shard, "shard": rank % self.shard}

    def line(self, axis: str, rank: int) -> tuple[int, ...]:
        """The ranks that meet `rank` on `axis`, in order of their coordinate, `rank` included."""
        at = self.coordinates(rank)
        if axis == "shard":
            return tuple(at["replica"] * self.shard + s for s in range(self.shard))
        if axis == "replica":
            return tuple(r * self.shard + at["shard"] for r in range(self.replica))
        raise ValueError(f"unknown axis {axis!r}; axes are replica, shard")


def resolve_layout(
    config: ParallelConfig, *, world_size: int, state_bytes: int, device_bytes: int
) -> Layout:
    """Turn `auto` into numbers.

    With both axes `auto`, parameters are replicated while the whole training state takes at most
    a quarter of a device, since replication moves 2/3 of the bytes of full sharding; otherwise
    they are sharded over all ranks. One axis given, the other takes the ranks that are left.

    Raises ValueError where the axes do not multiply to `world_size`.
    """
    if config.replica == "auto" and config.shard == "auto":
        if 4 * state_bytes <= device_bytes:
            return Layout(replica=world_size, shard=1)
        return Layout(replica=1, shard=world_size)
    replica = _fill("replica", config.replica, config.shard, world_size)
    shard = _fill("shard", config.shard, config.replica, world_size)
    if replica * shard != world_size:
        raise ValueError(
            f"parallel.replica={replica} × parallel.shard={shard} = {replica * shard}, but there "
            f"are {world_size} ranks; make the product {world_size} or set one of them to auto"
        )
    return Layout(replica=replica, shard=shard)


def _fill(axis: str, degree: Degree, other: Degree, world_size: int) -> int:
    if degree != "auto":
        return degree
    assert other != "auto"
    if world_size % other:
        raise ValueError(
            f"parallel.{axis}=auto has no answer: the other axis is {other}, which does not divide "
            f"the {world_size} ranks; choose one of {divisors(world_size)}"
        )
    return world_size // other
