"""Process groups of every sequence group that a pool can form, made once.

Making a group is collective over the world, so which ones exist is settled before the first step;
afterwards the sequence groups of a round are a look-up.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch.distributed as dist

from comms.groups import own_group
from parallel.layout import divisors
from parallel.sequence.stretches import AttentionScheme


@dataclass(frozen=True, kw_only=True)
class Ring:
    """One ring of ranks; each sends to the next in its order."""

    reads: dist.ProcessGroup
    """What travels to be read."""

    sums: dist.ProcessGroup
    """What is added up on the way; on CUDA its own communicator, so that both travel at once."""

    order: tuple[int, ...] = ()
    """Places of the group in the order in which tensors pass them; empty: as the group has them."""

    @property
    def size(self) -> int:
        """Ranks of the ring."""
        return self.reads.size()

    @property
    def index(self) -> int:
        """This rank's place."""
        return self.reads.rank()

    def place(self, hops: int) -> int:
        """The place so many hops further on; behind this one where negative."""
        if not self.order:
            return (self.index + hops) % self.size
        return self.order[(self.order.index(self.index) + hops) % self.size]


RingOrder = Callable[[Sequence[int]], tuple[int, ...]]
"""From the world ranks of a ring to the order of its places."""


@dataclass(frozen=True, kw_only=True)
class SequenceGroups:
    """This rank's communicators in one sequence group under one scheme; None where it is alone."""

    position: int
    ulysses: dist.ProcessGroup | None
    inner: Ring | None
    outer: Ring | None

    def ordered(self, order: RingOrder) -> "SequenceGroups":
        """The same groups, their rings in another order. All ranks of them call it alike."""

        def turned(ring: Ring | None) -> Ring | None:
            if ring is None:
                return None
            return replace(ring, order=order(dist.get_process_group_ranks(ring.reads)))

        return replace(self, inner=turned(self.inner), outer=turned(self.outer))

    @classmethod
    def of(cls, group: dist.ProcessGroup, scheme: AttentionScheme) -> "SequenceGroups":
        """Communicators of a scheme that needs no other group than the whole: Ulysses alone or
        one ring alone. Raises ValueError for any other, or where the size is not the degree."""
        if group.size() != scheme.degree:
            raise ValueError(
                f"a group of {group.size()} ranks cannot share attention by {scheme}, which "
                f"takes {scheme.degree}"
            )
        if min(scheme.ulysses, scheme.ring) > 1 or scheme.hosts > 1:
            raise ValueError(
                f"{scheme} needs groups inside the group; make them with make_communicators"
            )
        ring = Ring(reads=group, sums=group)
        return cls(
            position=group.rank(),
            ulysses=group if scheme.ulysses > 1 else None,
            inner=ring if scheme.ring > 1 else None,
            outer=None,
        )


class SequenceCommunicators:
    """This rank's sequence groups inside its pool, by size and scheme."""

    def __init__(
        self,
        whole: dict[int, dist.ProcessGroup],
        schemes: dict[AttentionScheme, SequenceGroups],
    ) -> None:
        self._whole = whole
        self._schemes = schemes

    def whole(self, size: int) -> dist.ProcessGroup:
        """All ranks of this rank's aligned group of `size`."""
        return self._whole[size]

    def of(self, scheme: AttentionScheme) -> SequenceGroups:
        """This rank's communicators under `scheme`, in its aligned group of `scheme.degree`."""
        if scheme not in self._schemes:
            raise ValueError(
                f"no communicators for {scheme}; they exist for "
                f"{', '.join(map(str, self._schemes)) or 'no scheme'}"
            )
        return self._schemes[scheme]


def make_communicators(
    pool_ranks: Sequence[int], sizes: Iterable[int], schemes: Iterable[AttentionScheme]
) -> SequenceCommunicators:
    """Make all aligned groups of the given sizes in a pool, and those inside them.

    `pool_ranks` are world ranks in the order of the pool. All ranks of the world call it with the
    same arguments, in the same order, once per pool; ranks outside the pool get none. Schemes
    share the groups they have in common. Raises ValueError where a
    size does not divide the pool, or the pool does not ascend.
    """
    if list(pool_ranks) != sorted(set(pool_ranks)):
        raise ValueError(f"pool ranks must ascend, as ranks do in a group, got {list(pool_ranks)}")
    maker = _Maker(pool_ranks)
    sizes, schemes = list(sizes), list(schemes)
    for size in {*sizes, *(scheme.degree for scheme in schemes)}:
        if len(pool_ranks) % size:
            raise ValueError(
                f"groups of {size} do not divide a pool of {len(pool_ranks)} ranks; choose sizes "
                f"from {divisors(len(pool_ranks))}"
            )
    whole = {size: maker.own(_aligned(pool_ranks, size)) for size in sorted(sizes)}
    found = {scheme: maker.scheme_groups(scheme) for scheme in schemes}
    return SequenceCommunicators(
        {size: group for size, group in whole.items() if group is not None},
        {scheme: groups for scheme, groups in found.items() if groups is not None},
    )


Members = tuple[int, ...]


class _Maker:
    """Makes each group once, whatever asks for it."""

    def __init__(self, pool_ranks: Sequence[int]) -> None:
        self._pool = tuple(pool_ranks)
        self._rank = dist.get_rank()
        self._made: dict[tuple[str, Members], dist.ProcessGroup | None] = {}

    def scheme_groups(self, scheme: AttentionScheme) -> SequenceGroups | None:
        """This rank's groups under one scheme, None outside the pool. Collective."""
        found: SequenceGroups | None = None
        heads = self.own(_strided(self._pool, scheme.degree, scheme.ulysses, 1))
        width = scheme.ring // scheme.hosts
        inner = self._ring(_strided(self._pool, scheme.degree, width, scheme.ulysses))
        stride = scheme.ulysses * width
        outer = self._ring(_strided(self._pool, scheme.degree, scheme.hosts, stride))
        if self._rank in self._pool:
            found = SequenceGroups(
                position=self._pool.index(self._rank) % scheme.degree,
                ulysses=heads,
                inner=inner,
                outer=outer,
            )
        return found

    def own(self, groups: Sequence[Members], use: str = "") -> dist.ProcessGroup | None:
        """Make `groups` where they are not there yet; the one that this rank is in."""
        mine = None
        for members in groups:
            if len(members) == 1:
                continue
            if (use, members) not in self._made:
                self._made[use, members] = own_group([members])
            if self._rank in members:
                mine = self._made[use, members]
        return mine

    def _ring(self, groups: Sequence[Members]) -> Ring | None:
        reads, sums = self.own(groups), self.own(groups, "sums")
        return None if reads is None or sums is None else Ring(reads=reads, sums=sums)


def _aligned(pool: Sequence[int], size: int) -> list[Members]:
    return [tuple(pool[at : at + size]) for at in range(0, len(pool), size)]


def _strided(pool: Sequence[int], degree: int, count: int, stride: int) -> list[Members]:
    """In every aligned group of `degree`: the sets of `count` ranks that are `stride` apart."""
    found = []
    for group in _aligned(pool, degree):
        for block in range(0, degree, count * stride):
            for offset in range(block, block + stride):
                found.append(group[offset : offset + count * stride : stride])
    return found
