"""Pure: where islands that were in different steps go on together from their snapshots.

Each island votes for itself, so each has snapshots of steps of its own. An exchange ends on an
island only after all have sent; who has sent has voted on that step, so its newest whole snapshot
is at most one step older. Hence among the newest snapshots of all islands one exchange at most has
ended on some and not on others. To the latter its outcome is told: the outer state of the former
is that outcome, bitwise. What has ended nowhere is sent again.

Guarantees, each asserted in tests/trainer/islands/test_reunion.py:
- islands whose newest snapshots are those of one moment all go on from them;
- the outcome of an exchange is taken from an island that merged it, by those that did not;
- an island without a snapshot, or with one that cannot belong to those of the others, joins: it
  copies the one that is furthest;
- there is no reunion without a single snapshot.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainer.islands.lag import MOST_APART_STEPS


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What one island's snapshot says of it."""

    generation: int
    """The start of the run that wrote it."""

    step: int
    begun: int
    """Exchanges that it has sent for."""

    committed: int
    """Exchanges that it has merged."""

    members: tuple[int, ...]
    """The islands that there were."""


@dataclass(frozen=True, kw_only=True)
class Reunion:
    """How islands go on together."""

    standings: Mapping[int, Standing]
    """Of those that go on from snapshots of their own, by number."""

    joining: tuple[int, ...]
    """The others."""

    furthest: int
    """Whose snapshot those copy that join."""

    teller: int | None
    """An island that has merged an exchange that others have not; None where there is none."""

    @property
    def last_step(self) -> int:
        """The last step that some island has done."""
        return self.standings[self.furthest].step

    @property
    def first_step(self) -> int:
        """The step that the one furthest behind has done."""
        return min(standing.step for standing in self.standings.values())

    @property
    def exchange(self) -> int:
        """The number of the exchange that the teller tells of."""
        assert self.teller is not None
        return self.standings[self.teller].committed - 1

    def source(self, island: int) -> int:
        """Whose snapshot an island goes on from."""
        return island if island in self.standings else self.furthest

    def listens(self, island: int) -> bool:
        """Whether an island has yet to merge what the teller tells of."""
        return (
            self.teller is not None
            and self.standings[self.source(island)].committed <= self.exchange
        )


def reunite(members: Sequence[int], found: Mapping[int, Standing]) -> Reunion | None:
    """How `members` go on from the snapshots found; None where there is none of theirs."""
    own = {number: found[number] for number in members if number in found}
    if not own:
        return None
    newest = max(own.values(), key=lambda standing: (standing.generation, standing.step))
    near = {n: standing for n, standing in own.items() if _belong(standing, newest)}
    most = max(standing.committed for standing in near.values())
    standings = {n: s for n, s in near.items() if s.committed >= most - 1}
    behind = any(s.committed < most for s in standings.values())
    ahead = [n for n, s in standings.items() if s.committed == most]
    return Reunion(
        standings=standings,
        joining=tuple(n for n in members if n not in standings),
        furthest=max(standings, key=lambda n: (standings[n].step, -n)),
        teller=ahead[0] if behind else None,
    )


def _belong(one: Standing, newest: Standing) -> bool:
    """Whether two snapshots can be of the same moment."""
    return one.members == newest.members and abs(one.step - newest.step) <= MOST_APART_STEPS
