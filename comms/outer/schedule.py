"""Pure: which fragment leaves at which inner step, when it is merged, and what that asks of a link.

Guarantees, each asserted in tests/comms/outer/test_schedule.py:
- every fragment leaves exactly once in any `every` consecutive steps, at its own offset;
- it is merged `overlap_steps` steps later, before the next one leaves: one at most is under way;
- which fragment an exchange carries depends on the number of exchanges alone, so islands of
  different speed agree on it, whatever their `every`;
- what does not fit is refused with values that do;
- the most fragments that fit are found.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from comms.outer.config import DilocoConfig

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class OuterSchedule:
    """When `fragments` fragments travel. Steps are counted from 1, exchanges from 0.

    Raises ValueError where the fragments do not divide `every`, or the overlap is not shorter than
    the steps between two fragments.
    """

    every: int
    overlap_steps: int
    fragments: int

    def __post_init__(self) -> None:
        every, fragments = self.every, self.fragments
        if fragments < 1:
            raise ValueError(f"{fragments} fragments were given; there must be at least one.")
        if every % fragments:
            below = every // fragments * fragments
            fitting = [below, below + fragments] if below else [fragments]
            counts = [n for n in range(1, every + 1) if every % n == 0]
            raise ValueError(
                f"every={every} is not divisible by {fragments} fragments. "
                f"Choose every={' or '.join(map(str, fitting))}, or one of {counts} fragments."
            )
        if self.overlap_steps >= self.period:
            raise ValueError(
                f"overlap_steps={self.overlap_steps} must be below the {self.period} steps between "
                f"two fragments (every={every} over {fragments} fragments). "
                f"Choose 0 to {self.period - 1}, or every={(self.overlap_steps + 1) * fragments}."
            )

    @property
    def period(self) -> int:
        """Steps between two fragments."""
        return self.every // self.fragments

    def offset(self, fragment: int) -> int:
        """The first step after which `fragment` leaves."""
        return (fragment + 1) * self.period

    def leaves(self, step: int) -> bool:
        """Whether a fragment leaves after `step`."""
        return step > 0 and step % self.period == 0

    def merges(self, step: int) -> bool:
        """Whether the fragment under way is merged after `step`."""
        return self.leaves(step - self.overlap_steps)

    def fragment(self, exchange: int) -> int:
        """The fragment that exchange number `exchange` carries."""
        return exchange % self.fragments


def schedule_of(config: DilocoConfig, fragments: int) -> OuterSchedule:
    """The schedule of a configuration. Raises ValueError where it does not fit the fragments."""
    return OuterSchedule(config.every, config.overlap_steps, fragments)


MOST_FRAGMENTS = 8
"""More parts make smaller messages, whose latency then counts; the peak has long fallen."""


def most_fragments(config: DilocoConfig, blocks: int) -> int:
    """The most fragments of up to so many blocks whose period the overlap fits into; 1 at least."""
    fitting = [
        n
        for n in range(1, min(blocks, MOST_FRAGMENTS) + 1)
        if config.every % n == 0 and config.overlap_steps < config.every // n
    ]
    return max(fitting, default=1)


def peak_bytes_per_s(message_bytes: Sequence[int], overlap_steps: int, step_s: float) -> float:
    """The bandwidth at which no step waits: the largest fragment within the overlap.

    Without an overlap every exchange is waited for, and no bandwidth is enough: infinite. A whole
    model of the same format in as many steps would need the sum instead of the largest, so the
    peak falls to the largest fragment's share (arXiv 2501.18512, section 3.1).
    """
    if overlap_steps == 0:
        return float("inf")
    return max(message_bytes) / (overlap_steps * step_s)


def mean_bytes_per_s(message_bytes: Sequence[int], every: int, step_s: float) -> float:
    """The bandwidth that all fragments take together on average."""
    return sum(message_bytes) / (every * step_s)


def split_blocks(
    blocks: Sequence[_Item], fragments: int, pattern: Literal["strided", "sequential"] = "strided"
) -> list[list[_Item]]:
    """Blocks dealt out to fragments: every n-th one (strided), or runs (sequential).

    Raises ValueError where there are fewer blocks than fragments.
    """
    if not 1 <= fragments <= len(blocks):
        raise ValueError(
            f"fragments={fragments} do not fit {len(blocks)} blocks. Choose 1 to {len(blocks)}."
        )
    if pattern == "strided":
        return [list(blocks[n::fragments]) for n in range(fragments)]
    edges = [n * len(blocks) // fragments for n in range(fragments + 1)]
    return [list(blocks[a:b]) for a, b in itertools.pairwise(edges)]


def split_parameters(
    named: Mapping[str, _Item],
    block_prefixes: Sequence[str],
    fragments: int,
    pattern: Literal["strided", "sequential"] = "strided",
) -> list[dict[str, _Item]]:
    """Named parameters as fragments: those below a block's prefix travel with that block.

    What lies before, between and after the blocks, such as embeddings and the head, is added to
    the fragments that hold the fewest names. Raises ValueError where a prefix matches nothing.
    """
    of_block: dict[str, dict[str, _Item]] = {prefix: {} for prefix in block_prefixes}
    others: dict[str, _Item] = {}
    for name, parameter in named.items():
        prefix = next((p for p in block_prefixes if name.startswith(f"{p}.")), None)
        (others if prefix is None else of_block[prefix])[name] = parameter
    empty = [prefix for prefix, inside in of_block.items() if not inside]
    if empty:
        raise ValueError(
            f"No parameter lies below {empty}. Give the names of the blocks as in "
            "named_modules(), such as 'layers.0'."
        )
    found: list[dict[str, _Item]] = []
    for group in split_blocks(block_prefixes, fragments, pattern):
        found.append({n: p for prefix in group for n, p in of_block[prefix].items()})
    for name, parameter in others.items():
        min(found, key=len)[name] = parameter
    return found
