"""Pure: blocks of whole tensors, and the regions that two sets of them cut each other into.

Guarantees, each asserted in tests/comms/weights/test_blocks.py:
- regions are disjoint and cover what is taken, once;
- all elements of a region are given, and taken, by the same ranks;
- parts of a split block are disjoint, cover it, and none is larger than was asked.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from math import prod
from typing import NamedTuple


class Block(NamedTuple):
    """A block of a whole tensor."""

    offsets: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """How many it has."""
        return prod(self.shape)

    def inside(self, other: "Block") -> bool:
        """Whether all of it lies in `other`."""
        return all(
            a <= b and b + n <= a + m
            for b, n, a, m in zip(self.offsets, self.shape, *other, strict=True)
        )


class Region(NamedTuple):
    """A block that the same ranks give and the same ranks take."""

    block: Block
    givers: tuple[int, ...]
    takers: tuple[int, ...]


class _Run(NamedTuple):
    """A box of grid cells, from `start` to before `stop`, that lies in the same given and taken
    blocks."""

    start: tuple[int, ...]
    stop: tuple[int, ...]
    owners: tuple[frozenset[int], frozenset[int]]


def regions(
    gives: Mapping[int, Sequence[Block]], takes: Mapping[int, Sequence[Block]]
) -> list[Region]:
    """What is taken of one tensor, in as few regions as merging dim by dim finds.

    `gives` and `takes` say which blocks each rank has and wants. A region that nobody gives has no
    givers.
    """
    given, taken = _owners(gives), _owners(takes)
    if not taken:
        return []
    cuts = _cuts([*given, *taken])
    cells: dict[tuple[int, ...], tuple[set[int], set[int]]] = {}
    for number, block in enumerate(taken):
        for cell in _cells(block, cuts):
            cells.setdefault(cell, (set(), set()))[1].add(number)
    for number, block in enumerate(given):
        for cell in _cells(block, cuts):
            if cell in cells:
                cells[cell][0].add(number)
    runs = [
        _Run(cell, tuple(i + 1 for i in cell), (frozenset(givers), frozenset(takers)))
        for cell, (givers, takers) in cells.items()
    ]
    for dim in reversed(range(len(cuts))):
        runs = _merged(runs, dim)
    ranks_given, ranks_taken = list(given.values()), list(taken.values())
    return [
        Region(
            _block(run, cuts),
            _union(ranks_given, run.owners[0]),
            _union(ranks_taken, run.owners[1]),
        )
        for run in sorted(runs, key=lambda run: run.start)
    ]


def split(block: Block, most_elements: int) -> Iterator[Block]:
    """The block in parts of at most `most_elements`, cut along its first dims."""
    if block.elements <= max(1, most_elements):
        yield block
        return
    dim = next(dim for dim, size in enumerate(block.shape) if size > 1)
    row = block.elements // block.shape[dim]
    rows = max(1, most_elements // row)
    for first in range(0, block.shape[dim], rows):
        offsets, shape = list(block.offsets), list(block.shape)
        offsets[dim] += first
        shape[dim] = min(rows, block.shape[dim] - first)
        yield from split(Block(tuple(offsets), tuple(shape)), most_elements)


def _owners(held: Mapping[int, Sequence[Block]]) -> dict[Block, list[int]]:
    """The ranks of each block that has elements."""
    owners: defaultdict[Block, list[int]] = defaultdict(list)
    for rank, blocks in sorted(held.items()):
        for block in blocks:
            if block.elements:
                owners[block].append(rank)
    return owners


def _cuts(blocks: Iterable[Block]) -> list[list[int]]:
    """Where blocks begin and end, per dim."""
    ends = [[{first, first + size} for first, size in zip(*block, strict=True)] for block in blocks]
    return [sorted(set().union(*along)) for along in zip(*ends, strict=True)]


def _cells(block: Block, cuts: Sequence[Sequence[int]]) -> Iterator[tuple[int, ...]]:
    spans = [
        range(along.index(first), along.index(first + size))
        for first, size, along in zip(*block, cuts, strict=True)
    ]
    return product(*spans)


def _merged(runs: Iterable[_Run], dim: int) -> list[_Run]:
    """Runs of the same owners that follow each other along one dim, as one."""

    def beside(run: _Run) -> tuple[tuple[int, ...], ...]:
        return (
            run.start[:dim] + run.start[dim + 1 :],
            run.stop[:dim] + run.stop[dim + 1 :],
        )

    merged: list[_Run] = []
    for run in sorted(runs, key=lambda run: (beside(run), run.start[dim])):
        last = merged[-1] if merged else None
        if (
            last is not None
            and last.owners == run.owners
            and beside(last) == beside(run)
            and last.stop[dim] == run.start[dim]
        ):
            merged[-1] = _Run(last.start, run.stop, run.owners)
        else:
            merged.append(run)
    return merged


def _block(run: _Run, cuts: Sequence[Sequence[int]]) -> Block:
    offsets = tuple(along[i] for i, along in zip(run.start, cuts, strict=True))
    ends = tuple(along[i] for i, along in zip(run.stop, cuts, strict=True))
    return Block(offsets, tuple(end - first for first, end in zip(offsets, ends, strict=True)))


def _union(ranks: Sequence[Sequence[int]], numbers: frozenset[int]) -> tuple[int, ...]:
    return tuple(sorted({rank for number in numbers for rank in ranks[number]}))
