"""Which islands of a run go on, and on which processes."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from cluster.recovery.roster import Member, Roster
from cluster.recovery.shrink import islands_left
from trainer.config import JobConfig


@dataclass
class GoingIslands:
    """Of one run, from one set of ranks to the next."""

    job: JobConfig
    """That the run began with."""

    numbers: tuple[int, ...] = ()
    """Those that go on, where some are lost; none where all do."""

    def settle(
        self,
        before: Roster,
        lost: Iterable[Member],
        ready: Sequence[Member],
        *,
        job: JobConfig,
        ranks: int,
        host_lost: Callable[[str], bool],
    ) -> Sequence[Member]:
        """Choose those that go on in `job`; the processes, of `ready`, that may have its `ranks`:
        rather theirs. `lost` are processes that were replaced, if that was possible."""
        count = self.job.parallel.island
        if job.parallel.island == count:
            self.numbers = ()
            return ready
        islands = self.numbers or tuple(range(count))
        size = len(before.members) // len(islands)
        had = {m.number: islands[rank // size] for rank, m in enumerate(before.members)}
        broken = [(had[m.number], m.node_id) for m in lost if m.number in had]
        self.numbers = islands_left(
            count,
            islands,
            without_host={number for number, node_id in broken if host_lost(node_id)},
            broken={number for number, _ in broken},
            count=job.parallel.island,
        )
        going = [m for m in ready if had.get(m.number, -1) in (-1, *self.numbers)]
        return going if len(going) >= ranks else ready

    def shared_out(self, job: JobConfig) -> JobConfig:
        """`job`, in which those that go on keep their shares of the batch."""
        if not self.numbers:
            return job
        island = self.job.comms.island.only(self.numbers)
        return replace(job, comms=replace(job.comms, island=island))
