"""Which steps of a run are not trained on, and which saved states belong to what is. Pure: neither
torch nor ray.

A rollback takes the state that step `to_step` left and goes on after step `from_step`: what lies
between is undone, and its batches are jumped over. A run that goes on from a state before `to_step`
comes to the same rollback again and jumps likewise, so that it ends as if it had not been
interrupted.

Guarantees, each asserted in tests/trainer/numeric/test_jumps.py:
- a step that was rolled back is never trained on again, however often a run starts;
- a state from within what was rolled back is never gone on from;
- steps that are left are in order, each once.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, order=True)
class Rollback:
    """From the state after `from_step` back to that after `to_step`."""

    from_step: int
    to_step: int

    def covers(self, step: int) -> bool:
        """Whether the batch of `step` is jumped over."""
        return self.to_step < step <= self.from_step


def steps_left(
    after: int, last: int, *, rollbacks: Sequence[Rollback], skipped: Iterable[int]
) -> Iterator[int]:
    """Steps to train on after step `after`, up to `last`."""
    left_out = frozenset(skipped)
    for step in range(after + 1, last + 1):
        if step not in left_out and not any(rollback.covers(step) for rollback in rollbacks):
            yield step


def made_by(step: int, rollbacks: Iterable[Rollback]) -> tuple[Rollback, ...]:
    """Of a run's rollbacks those that a state at `step` has behind it."""
    return tuple(rollback for rollback in rollbacks if rollback.from_step <= step)


def abandoned_by(
    step: int, made: Iterable[Rollback], rollbacks: Iterable[Rollback]
) -> Rollback | None:
    """The rollback that left a state at `step`, which has `made` behind it, on the wrong side; None
    where the state may be gone on from."""
    behind = frozenset(made)
    for rollback in rollbacks:
        if rollback not in behind and step > rollback.to_step:
            return rollback
    return None


def encode(rollbacks: Iterable[Rollback]) -> list[list[int]]:
    """As JSON."""
    return [[rollback.from_step, rollback.to_step] for rollback in rollbacks]


def decode(record: Any) -> tuple[Rollback, ...]:
    """Raises ValueError where it is not one of ours."""
    try:
        return tuple(Rollback(from_step=int(a), to_step=int(b)) for a, b in record)
    except TypeError as error:
        raise ValueError(f"no list of rollbacks: {record!r}") from error


def told(rollback: Rollback) -> dict[str, int]:
    """For an event."""
    return asdict(rollback)
