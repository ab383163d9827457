"""Pure: the cold choice of axis sizes, and which ranks meet on which axis.

Guarantees, each asserted in tests/parallel/test_layout.py:
- every rank has exactly one coordinate per axis, and coordinates name exactly one rank;
- the ranks of one axis line partition the world;
- `tp` varies fastest, then `ep` inside `shard`: what sends most stays inside a host where it can;
- `island` varies slowest: an island is a block of neighbouring ranks, and every line of another
  axis, every pool and every expert group lies inside one.
"""

from dataclasses import dataclass
from math import gcd

from parallel.config import Degree, ParallelConfig

AXES = ("island", "pp", "replica", "shard", "tp")
"""Axes whose product is the world, outermost first."""


def divisors(number: int) -> list[int]:
    """All positive divisors, ascending."""
    return [d for d in range(1, number + 1) if number % d == 0]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Axis sizes of a run. Changing it reshards the model."""

    island: int = 1
    """Copies that exchange outer updates alone, and are otherwise runs of their own."""

    replica: int = 1
    shard: int = 1
    pp: int = 1
    tp: int = 1
    ep: int = 1
    """Ranks that share the experts: neighbours on `shard`."""

    shard_weights: int = 0
    """Ranks that share the weights; 0 is all of `shard`."""

    shard_gradients: int = 0
    """Ranks that share the gradients between rounds; 0 is all of `shard`."""

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.island * self.island_ranks

    @property
    def island_ranks(self) -> int:
        """Number of ranks of one island."""
        return self.pp * self.replica * self.shard * self.tp

    @property
    def data_ranks(self) -> int:
        """Number of ranks of an island that see different tokens: the size of the pool."""
        return self.replica * self.shard

    @property
    def hierarchical(self) -> bool:
        """Whether weights, gradients and optimizer states are sharded at different widths."""
        return {self.shard_weights or self.shard, self.shard_gradients or self.shard} != {
            self.shard
        }

    def coordinates(self, rank: int) -> dict[str, int]:
        """Where `rank` stands on each axis."""
        if not 0 <= rank < self.world_size:
            raise ValueError(f"rank {rank} is outside 0..{self.world_size - 1}")
        rest, tp = divmod(rank, self.tp)
        rest, shard = divmod(rest, self.shard)
        rest, replica = divmod(rest, self.replica)
        island, pp = divmod(rest, self.pp)
        return {"island": island, "pp": pp, "replica": replica, "shard": shard, "tp": tp}

    def island_of(self, rank: int) -> int:
        """The island of `rank`."""
        return self.coordinates(rank)["island"]

    def islands(self) -> list[tuple[int, ...]]:
        """The ranks of each island, in order."""
        size = self.island_ranks
        return [tuple(range(i * size, (i + 1) * size)) for i in range(self.island)]

    def data_rank(self, rank: int) -> int:
        """Position of `rank` in its pool: what step plans call a rank."""
        at = self.coordinates(rank)
        return at["replica"] * self.shard + at["shard"]

    def pool(self, rank: int) -> tuple[int, ...]:
        """The ranks that see different tokens from `rank` and hold the same layers, in order."""
        at = self.coordinates(rank)
        return tuple(
            self._rank({**at, "replica": r, "shard": s})
            for r in range(self.replica)
            for s in range(self.shard)
        )

    def line(self, axis: str, rank: int) -> tuple[int, ...]:
        """The ranks that meet `rank` on `axis`, in order of their coordinate, `rank` included."""
        at = self.coordinates(rank)
        if axis == "ep":
            first = at["shard"] - at["shard"] % self.ep
            return tuple(self._rank({**at, "shard": first + e}) for e in range(self.ep))
        sizes = self._sizes()
        if axis not in sizes:
            raise ValueError(f"unknown axis {axis!r}; axes are {', '.join((*AXES, 'ep'))}")
        return tuple(self._rank({**at, axis: i}) for i in range(sizes[axis]))

    def describe(self) -> str:
        """The axes that are in use, for people."""
        sizes = {axis: size for axis, size in self._sizes().items() if size > 1}
        used = [f"{axis} {size}" for axis, size in sizes.items()]
        used += [f"ep {self.ep} (inside shard)"] if self.ep > 1 else []
        if self.hierarchical:
            used.append(
                f"weights over {self.shard_weights or self.shard}, gradients over "
                f"{self.shard_gradients or self.shard}, optimizer states over {self.shard}"
            )
        return " × ".join(used) or "one rank"

    def _sizes(self) -> dict[str, int]:
        return {
            "island": self.island,
            "pp": self.pp,
            "replica": self.replica,
            "shard": self.shard,
            "tp": self.tp,
        }

    def _rank(self, at: dict[str, int]) -> int:
        rank = 0
        for axis, size in self._sizes().items():
            rank = rank * size + at[axis]
        return rank


def resolve_layout(
    config: ParallelConfig,
    *,
    world_size: int,
    state_bytes: int,
    device_bytes: int,
    num_experts: int = 0,
    ranks_per_host: int = 0,
) -> Layout:
    """Turn `auto` into numbers.

    With both data axes `auto`, parameters are replicated while the whole training state takes at
    most a quarter of a device, since replication moves 2/3 of the bytes of full sharding;
    otherwise, and where experts are spread or weights sharded apart, they are sharded over all
    data ranks. One axis given, the other takes the ranks that are left.

    Raises ValueError where the axes do not multiply to `world_size` or do not divide each other, or
    where an island has parts of hosts.
    """
    island = config.island
    if world_size % island:
        raise ValueError(
            f"parallel.island={island} does not divide the {world_size} ranks: islands are of "
            f"equal size; choose one of {divisors(world_size)}"
        )
    world_size //= island
    _check_hosts(island, world_size, ranks_per_host)
    pp = 1 if config.pp == "auto" else config.pp
    tp = 1 if config.tp == "auto" else config.tp
    if world_size % (pp * tp):
        raise ValueError(
            f"parallel.pp={pp} × parallel.tp={tp} = {pp * tp} does not divide the {world_size} "
            f"ranks{' of an island' if island > 1 else ''}; choose a product among "
            f"{divisors(world_size)}"
        )
    data = world_size // (pp * tp)
    replica, shard = _data_axes(config, data, state_bytes // (pp * tp), device_bytes, pp * tp)
    layout = Layout(
        island=island,
        pp=pp,
        replica=replica,
        shard=shard,
        tp=tp,
        ep=_experts(config.ep, shard, num_experts, max(1, ranks_per_host // tp)),
        shard_weights=0 if config.shard_weights == "auto" else config.shard_weights,
        shard_gradients=0 if config.shard_gradients == "auto" else config.shard_gradients,
    )
    _check_widths(layout)
    return layout


def _check_hosts(island: int, island_ranks: int, ranks_per_host: int) -> None:
    """An island has whole hosts, or a host whole islands."""
    ranks = island * island_ranks
    on_host = max(1, min(ranks_per_host, ranks))
    if island_ranks % on_host and on_host % island_ranks:
        fitting = [
            n for n in divisors(ranks) if not (ranks // n) % on_host or not on_host % (ranks // n)
        ]
        raise ValueError(
            f"parallel.island={island} gives islands of {island_ranks} ranks, which are not whole "
            f"hosts of {on_host}; choose one of {fitting}"
        )


def _data_axes(
    config: ParallelConfig, data: int, state_bytes: int, device_bytes: int, others: int
) -> tuple[int, int]:
    if config.replica == "auto" and config.shard == "auto":
        apart = (config.shard_weights, config.shard_gradients) != ("auto", "auto")
        if 4 * state_bytes <= device_bytes and config.ep == 1 and not apart:
            return data, 1
        return 1, data
    replica = _fill("replica", config.replica, config.shard, data)
    shard = _fill("shard", config.shard, config.replica, data)
    if replica * shard != data:
        beside = f" × parallel.pp × parallel.tp ({others})" if others > 1 else ""
        raise ValueError(
            f"parallel.replica={replica} × parallel.shard={shard}{beside} = "
            f"{replica * shard * others}, but there are {data * others} ranks; make the product "
            f"{data * others} or set one of them to auto"
        )
    return replica, shard


def _fill(axis: str, degree: Degree, other: Degree, data: int) -> int:
    if degree != "auto":
        return degree
    assert other != "auto"
    if data % other:
        raise ValueError(
            f"parallel.{axis}=auto has no answer: the other axis is {other}, which does not divide "
            f"the {data} ranks; choose one of {divisors(data)}"
        )
    return data // other


def _experts(ep: Degree, shard: int, num_experts: int, ranks_per_host: int) -> int:
    if ep == "auto":
        return gcd(num_experts, shard, ranks_per_host) if num_experts else 1
    if shard % ep:
        raise ValueError(
            f"parallel.ep={ep} does not divide parallel.shard={shard}: expert groups are formed "
            f"inside it; choose one of {divisors(shard)}"
        )
    return ep


def _check_widths(layout: Layout) -> None:
    """Weights over r_w ranks, gradients over r_g, optimizer states over `shard`: each divides the
    next."""
    gradients = layout.shard_gradients or layout.shard
    weights = layout.shard_weights or layout.shard
    if layout.shard % gradients:
        raise ValueError(
            f"parallel.shard_gradients={gradients} does not divide parallel.shard={layout.shard}; "
            f"choose one of {divisors(layout.shard)}"
        )
    if gradients % weights:
        raise ValueError(
            f"parallel.shard_weights={weights} does not divide parallel.shard_gradients="
            f"{gradients}; choose one of {divisors(gradients)}"
        )
