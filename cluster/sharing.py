"""How many ranks shall train where others may have the places of some. Used by the main thread.

Places change hands between two generations: ranks that are to be fewer leave at a step that is in
memory and give up theirs; ranks that are to be more leave once the new processes are ready.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from cluster.beside import Beside, Wish
from cluster.crew import Crew
from cluster.recovery.roster import Roster
from cluster.recovery.shrink import largest_job
from cluster.staffing import Staffing
from trainer.config import JobConfig


@dataclass
class Sharing:
    """Of one run."""

    crew: Crew
    staffing: Staffing
    beside: Beside
    starting_s: float
    """In which processes for new ranks must be ready."""

    clock: Callable[[], float] = time.monotonic
    wanted: int = field(init=False)
    """Ranks that shall train, where no fault hinders them."""

    _had: int = field(init=False)
    """As many as that before the wish."""

    _working: set[int] = field(default_factory=set, init=False)
    """Numbers of the processes that have ranks."""

    _wish: Wish | None = field(default=None, init=False)
    _since_s: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.wanted = self._had = self.crew.needs.workers

    def listen(self) -> None:
        """Take in what those beside the ranks wish."""
        wish = self.beside.wish()
        if wish is None:
            return
        if self._wish is None:
            self._had = self.wanted
        self._wish, self._since_s = wish, self.clock()
        self.wanted = wish.ranks
        for bundle in wish.bundles:
            self.crew.take_place(bundle)

    def others_ready(self, ranks: int, job: Callable[[], JobConfig], *, rest_s: float) -> bool:
        """Whether another number than `ranks`, which train now, can go on: as wished, or more of
        those that were lost. Has processes started for it; a wish that cannot be had in time is
        given up. `rest_s` is how long the run will still take."""
        if self._wish is not None:
            return self.wanted < ranks or self._grown(ranks)
        ready = self.staffing.grow(ranks=ranks, wanted=self.wanted, rest_s=rest_s)
        return ready > ranks and largest_job(job(), at_most=ready, at_least=ranks + 1) is not None

    def _grown(self, ranks: int) -> bool:
        if len(self.crew.ready) >= self.wanted:
            return True
        self.staffing.refill(lost_too=False)
        if self.clock() - self._since_s > self.starting_s:
            self._refuse()
        return False

    def settle(self, roster: Roster) -> None:
        """These go on: places of processes that are left over go to those beside them."""
        self._working = {member.number for member in roster.members}
        if self._wish is None or len(roster.members) != self.wanted:
            return
        self._wish = None
        self._give_up_others()

    def _refuse(self) -> None:
        missing = self.wanted - len(self.crew.ready)
        refused = (
            f"{missing} of {self.wanted} ranks were not ready after {self.starting_s:g} s "
            "(cluster.deadlines.starting_s); see the workers' logs in the run folder"
        )
        self.wanted = self._had
        assert self._wish is not None
        bundles, self._wish = set(self._wish.bundles), None
        # After a fault some may train there. The other places are given back at once: processes
        # without a rank are of no use, and nobody waits for them.
        bundles -= {m.bundle for m in self.crew.ready if m.number in self._working}
        for member in [*self.crew.ready, *self.crew.starting]:
            if member.bundle in bundles:
                self.crew.dismiss(member)
        for bundle in bundles:
            self.crew.leave_place(bundle)
        self.beside.given(sorted(bundles), refused)

    def _give_up_others(self) -> None:
        bundles = []
        for member in [*self.crew.ready, *self.crew.starting]:
            if member.number not in self._working and member.bundle is not None:
                self.crew.dismiss(member)
                self.crew.leave_place(member.bundle)
                bundles.append(member.bundle)
        self.beside.given(bundles, "")
