"""Parameters cut into subgroups, the unit that is fetched, updated and flushed. Pure.

Guarantees, each asserted in tests/offload/test_subgroups.py:
- every element of every parameter is in exactly one segment;
- a subgroup holds parameters of one parameter group, and at most the limit;
- its size is a multiple of a page of fp32, so that it can go to disk without copying;
- a parameter is cut only at multiples of `ALIGNMENT`, so that vectorised arithmetic gives the same
  bits whatever the limit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

ALIGNMENT = 16
"""Elements of fp32 in a cache line, which is also the widest vector register."""

PAGE_ELEMENTS = 1024
"""Elements of fp32 in a page of 4 KiB."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of one flat parameter inside a subgroup."""

    parameter: int
    start: int
    """First element in the flat parameter."""

    length: int
    offset: int
    """First element in the subgroup."""

    @property
    def in_parameter(self) -> slice:
        """Where it is in the flat parameter."""
        return slice(self.start, self.start + self.length)

    @property
    def in_subgroup(self) -> slice:
        """Where it is in the subgroup's flat tensors."""
        return slice(self.offset, self.offset + self.length)


@dataclass(frozen=True, slots=True)
class Subgroup:
    """Segments with one set of hyperparameters."""

    index: int
    group: int
    segments: tuple[Segment, ...]
    size: int
    """Elements of its flat tensors, padding included."""


def cut_subgroups(groups: Sequence[Sequence[tuple[int, int]]], limit: int) -> tuple[Subgroup, ...]:
    """Cut each group's (parameter, number of elements) into subgroups of about equal size.

    `limit` is the most elements of a subgroup, rounded down to whole pages. Parameters without
    elements, as uneven shards have them, are in no subgroup.
    """
    if limit < PAGE_ELEMENTS:
        raise ValueError(f"a subgroup needs at least {PAGE_ELEMENTS} parameters, got {limit}")
    found: list[Subgroup] = []
    for group, parameters in enumerate(groups):
        for segments in _fill(parameters, _even_limit(parameters, limit)):
            end = segments[-1].offset + segments[-1].length
            size = _round_up(end, PAGE_ELEMENTS)
            found.append(Subgroup(len(found), group, tuple(segments), size))
    return tuple(found)


def _even_limit(parameters: Sequence[tuple[int, int]], limit: int) -> int:
    """The smallest limit that needs no more subgroups than `limit` does."""
    whole = limit // PAGE_ELEMENTS * PAGE_ELEMENTS
    total = sum(_round_up(size, ALIGNMENT) for _, size in parameters)
    return _round_up(-(-total // max(1, -(-total // whole))), PAGE_ELEMENTS)


def _fill(parameters: Sequence[tuple[int, int]], limit: int) -> list[list[Segment]]:
    runs: list[list[Segment]] = []
    offset = limit
    for parameter, size in parameters:
        start = 0
        while start < size:
            if offset >= limit:
                runs.append([])
                offset = 0
            length = min(size - start, limit - offset)
            runs[-1].append(Segment(parameter, start, length, offset))
            start += length
            offset = _round_up(offset + length, ALIGNMENT)
    return runs


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
