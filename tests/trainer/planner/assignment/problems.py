"""Problems for the tests of the assignment: drawn by hypothesis, solved by trying everything."""

from collections.abc import Iterator

from hypothesis import strategies as st

from trainer.planner.assignment.problem import (
    GroupShare,
    Problem,
    SequenceCosts,
    group_s,
    powers_of_two,
)

COSTS = SequenceCosts(
    quadratic_s=1e-5,
    linear_s=1e-3,
    fixed_s=0.05,
    exchange_s_per_token={2: 1e-5, 4: 2e-5, 8: 4e-4, 16: 3e-4, 32: 2e-4, 64: 1e-4},
)


def problem(
    lengths: list[int] | tuple[int, ...],
    *,
    ranks: int = 8,
    capacity: int = 100,
    costs: SequenceCosts = COSTS,
) -> Problem:
    """A problem with the degrees that the ranks allow."""
    return Problem(
        lengths_tokens=tuple(lengths), ranks=ranks, capacity_tokens=capacity, costs=costs
    )


@st.composite
def problems(
    draw: st.DrawFn, *, most_sequences: int = 24, ranks: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 13)
) -> Problem:
    """Any ranks, lengths with a long tail, costs where communication may or may not matter."""
    chosen = draw(st.sampled_from(ranks))
    longest = 100 * powers_of_two(chosen)[-1]
    short, long = st.integers(1, 60), st.integers(1, longest)
    lengths = draw(st.lists(st.one_of(short, short, long), min_size=1, max_size=most_sequences))
    costs = SequenceCosts(
        quadratic_s=draw(st.sampled_from([0.0, 1e-5, 1e-4])),
        linear_s=draw(st.sampled_from([1e-4, 1e-3])),
        fixed_s=draw(st.sampled_from([0.0, 0.05, 1.0])),
        exchange_s_per_token={
            degree: draw(st.sampled_from([0.0, 1e-5, 5e-4])) for degree in powers_of_two(64)[1:]
        },
    )
    return problem(lengths, ranks=chosen, costs=costs)


def best_s(given: Problem) -> float:
    """Seconds of the best assignment, by trying all partitions into groups and rounds."""
    lengths = given.lengths_tokens
    most = len(lengths)
    rounds_by_set: dict[frozenset[int], float] = {}
    for groups in _partitions(list(range(most))):
        seconds = _best_round_s(given, groups)
        if seconds is not None:
            members = frozenset(i for group in groups for i in group)
            rounds_by_set[members] = min(seconds, rounds_by_set.get(members, seconds))
    best = {frozenset[int](): 0.0}
    for size in range(1, most + 1):
        for members in rounds_by_set:
            if len(members) > size:
                continue
            for done, seconds in list(best.items()):
                if not done & members and len(done | members) == size:
                    union = done | members
                    total = seconds + rounds_by_set[members] + given.costs.fixed_s
                    best[union] = min(total, best.get(union, total))
    return best[frozenset(range(most))]


def _partitions(items: list[int]) -> Iterator[list[list[int]]]:
    """All partitions of all non-empty subsets of `items` into groups."""
    if not items:
        return
    first, rest = items[0], items[1:]
    yield [[first]]
    for partition in _partitions(rest):
        yield partition
        yield [[first], *partition]
        for i, group in enumerate(partition):
            yield [*partition[:i], [first, *group], *partition[i + 1 :]]


def _best_round_s(given: Problem, groups: list[list[int]]) -> float | None:
    tokens = [sum(given.lengths_tokens[i] for i in group) for group in groups]
    best: float | None = None
    for sizes in _sizes(given, tokens):
        shares = [
            GroupShare(size=size, sequences=tuple(group))
            for size, group in zip(sizes, groups, strict=True)
        ]
        seconds = max(group_s(share, given) for share in shares)
        best = seconds if best is None else min(best, seconds)
    return best


def _sizes(given: Problem, tokens: list[int], used: int = 0) -> Iterator[list[int]]:
    if not tokens:
        yield []
        return
    for size in given.degrees:
        if tokens[0] <= size * given.capacity_tokens and used + size <= given.ranks:
            for others in _sizes(given, tokens[1:], used + size):
                yield [size, *others]
