"""The question and the answer of one step's assignment. Pure data.

Guarantees, each asserted in tests/trainer/planner/assignment/test_problem.py:
- a problem that no assignment can solve is refused, naming the sequence and the longest that fits;
- the predicted seconds of an assignment follow from the costs alone.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SequenceCosts:
    """What sequences cost on one sequence group, forward and backward (FlexSP, arXiv 2412.01523).

    A group of degree d that holds the sequences s takes
    `sum(quadratic_s * s**2 + linear_s * s) / d + exchange_s_per_token[d] * sum(s)`, and every
    round takes `fixed_s` on top of its slowest group.
    """

    quadratic_s: float
    """Seconds of one rank per squared token of one sequence: attention."""

    linear_s: float
    """Seconds of one rank per token: everything else."""

    fixed_s: float
    """Seconds of a round that do not depend on its tokens."""

    exchange_s_per_token: Mapping[int, float]
    """By degree: seconds of communication per token of the group, already divided by the degree."""

    def __post_init__(self) -> None:
        values = (
            self.quadratic_s,
            self.linear_s,
            self.fixed_s,
            *self.exchange_s_per_token.values(),
        )
        if min(values) < 0.0:
            raise ValueError(f"costs must not be negative, got {self}. Measure them again.")
        if self.exchange_s_per_token.get(1, 0.0) != 0.0:
            raise ValueError(
                f"exchange_s_per_token[1]={self.exchange_s_per_token[1]}, but one rank exchanges "
                "nothing. Leave degree 1 out or set it to 0."
            )

    def sequence_s(self, length_tokens: int, degree: int) -> float:
        """Seconds that one sequence adds to a group of `degree` ranks."""
        work_s = (self.quadratic_s * length_tokens + self.linear_s) * length_tokens
        exchange_s = self.exchange_s_per_token[degree] if degree > 1 else 0.0
        return work_s / degree + exchange_s * length_tokens


@dataclass(frozen=True, kw_only=True)
class Problem:
    """The sequences of one step and the pool of ranks that shall hold them."""

    lengths_tokens: tuple[int, ...]
    ranks: int
    capacity_tokens: int
    """Tokens that one rank holds in one round."""

    costs: SequenceCosts
    degrees: tuple[int, ...] = ()
    """Allowed group sizes, powers of two; empty means 1 and those whose exchange cost is known."""

    def __post_init__(self) -> None:
        if self.ranks < 1 or self.capacity_tokens < 1:
            raise ValueError(
                f"ranks={self.ranks} and capacity_tokens={self.capacity_tokens} must be at least 1."
            )
        if not self.degrees:
            known = {1, *self.costs.exchange_s_per_token}
            object.__setattr__(self, "degrees", tuple(d for d in known if d <= self.ranks))
        object.__setattr__(self, "degrees", tuple(sorted(set(self.degrees))))
        self._check_degrees()
        self._check_lengths()

    def _check_degrees(self) -> None:
        for degree in self.degrees:
            if degree < 1 or degree & (degree - 1) or degree > self.ranks:
                raise ValueError(
                    f"degree {degree} is not a power of two of at most {self.ranks} ranks. "
                    f"Choose among {powers_of_two(self.ranks)}."
                )
            if degree > 1 and degree not in self.costs.exchange_s_per_token:
                raise ValueError(
                    f"no exchange cost is known for degree {degree}, only for "
                    f"{sorted(self.costs.exchange_s_per_token)}. Measure it or leave it out."
                )

    def _check_lengths(self) -> None:
        longest_fitting = self.longest_fitting_tokens
        for number, length in enumerate(self.lengths_tokens):
            if length < 1:
                raise ValueError(f"sequence {number} has {length} tokens; it needs at least 1.")
            if length > longest_fitting:
                raise ValueError(
                    f"sequence {number} has {length} tokens, but the longest that fits is "
                    f"{longest_fitting} (groups of {self.degrees[-1]} ranks, "
                    f"{self.capacity_tokens} tokens each). Split or drop it, or raise the capacity."
                )

    @property
    def longest_fitting_tokens(self) -> int:
        """Tokens of the longest sequence that some group holds."""
        return self.capacity_tokens * self.degrees[-1]


def powers_of_two(most: int) -> tuple[int, ...]:
    """1, 2, 4, … up to `most`."""
    return tuple(1 << exponent for exponent in range(most.bit_length()))


@dataclass(frozen=True, kw_only=True)
class GroupShare:
    """The sequences of one group in one round."""

    size: int
    """Ranks of the group."""

    sequences: tuple[int, ...]
    """Positions in `Problem.lengths_tokens`."""


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """Who holds what in every round, and how good that is."""

    rounds: tuple[tuple[GroupShare, ...], ...]
    """Groups largest first, so that each one starts at a multiple of its size."""

    predicted_s: float
    lower_bound_s: float
    """No assignment of this problem takes less."""

    best_static_s: float
    """What the best single degree takes, packed with the same care."""

    best_static_degree: int
    how: str
    """Which part of the search found it, and how far it is from the bound, for people."""

    @property
    def gap(self) -> float:
        """How far the answer may be from the best one, relative to the bound."""
        if self.lower_bound_s == 0.0:
            return 0.0
        return self.predicted_s / self.lower_bound_s - 1.0


def group_s(share: GroupShare, problem: Problem) -> float:
    """Seconds of one group, without the round's fixed part."""
    lengths = problem.lengths_tokens
    return sum(problem.costs.sequence_s(lengths[i], share.size) for i in share.sequences)


def rounds_s(rounds: Iterable[Iterable[GroupShare]], problem: Problem) -> float:
    """Seconds of all rounds: each takes as long as its slowest group."""
    return sum(
        problem.costs.fixed_s + max(group_s(share, problem) for share in groups)
        for groups in rounds
    )
