"""A run over its faults: put ranks together, follow them, and after a fault put them together anew.

What a generation learned lives outside its processes, in snapshots and checkpoints; what is kept
here is who works and how often it went wrong.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import ray

from cluster.agents import Agents
from cluster.controller import Controller, Limits
from cluster.crew import Crew
from cluster.failure import Failure, GaveUp, WorkersFailed, first_failure
from cluster.memory_folder import memory_folder
from cluster.preflight import Needs, living_nodes
from cluster.progress import Progress
from cluster.rank import RankSpec
from cluster.reading import Outcome
from cluster.recovery.budget import Allowance, pause_s, refusal, story, worth_a_restart
from cluster.recovery.incidents import Incidents
from cluster.recovery.roster import Member, Roster, first_roster, next_roster
from cluster.recovery.shrink import islands_left, largest_job
from cluster.run import Run
from cluster.run_info import write_run_info
from cluster.signals import StopSignals
from cluster.view import RunView
from cluster.waiting import Phases
from cluster.watchdog.watch import Watchdog
from cluster.watching import WatchedRank, Watching
from cluster.worker_group import WorkerGroup
from comms.config import RankEnvironment
from trainer.checkpoint.folder import list_complete
from trainer.config import JobConfig

_POLL_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Means:
    """What generations may use and how long they may take."""

    needs: Needs
    threads: int
    limits: Limits
    starting_s: float
    allowance: Allowance
    replace_within_s: float
    free_within_s: float
    min_workers: int


@dataclass(kw_only=True)
class Generations:
    """All generations of one run."""

    crew: Crew
    agents: Agents
    watchdog: Watchdog
    run: Run
    means: Means
    project: str
    explicit: Mapping[str, str]
    phases: Phases
    view: RunView
    stop: StopSignals

    incidents: Incidents = field(init=False)
    _progress: Progress = field(default_factory=Progress, init=False)
    _number: int = field(default=0, init=False)
    _lost_nodes: set[str] = field(default_factory=set, init=False)
    _islands: tuple[int, ...] = field(default=(), init=False)
    """Those that go on, where some are lost."""

    memory_folder: str = field(init=False)

    def __post_init__(self) -> None:
        self.memory_folder = str(memory_folder(self.run.folder.root))
        self.incidents = Incidents(self.run.folder.events, clock=time.monotonic, now=time.time)

    def to_the_end(self) -> Outcome:
        """Until a generation ends as asked. The crew's processes are ready.

        Raises WorkersFailed where a fault is not worth another start, GaveUp where there were too
        many, StopRequested where a signal came while there was nothing to save.
        """
        job = self.run.job
        roster = first_roster(self.crew.ready, self.means.needs.workers)
        write_run_info(self.run, roster.places())
        try:
            while True:
                try:
                    return self._one(roster, job)
                except WorkersFailed as error:
                    roster, job = self._recover(roster, error.failures)
                    self._number += 1
        finally:
            self.agents.remove(self.memory_folder)

    def _one(self, roster: Roster, job: JobConfig) -> Outcome:
        places = roster.places()
        group = WorkerGroup(places, [self.crew.actor(member) for member in roster.members])
        waiting = self.phases.begin("starting", deadline_s=self.means.starting_s)
        port = group.port(waiting)
        specs = {
            place.rank: RankSpec(
                environment=RankEnvironment(
                    rank=place.rank,
                    world_size=len(places),
                    local_rank=place.local_rank,
                    local_world_size=place.local_world_size,
                    host=place.host,
                    master_address=places[0].address,
                    master_port=port,
                    device_type="cuda" if self.means.needs.gpus else "cpu",
                    threads=self.means.threads,
                    device_index=place.device,
                    generation=self._number,
                    islands=self._islands,
                ),
                project=self.project,
                job=job,
                explicit=self.explicit,
                memory_folder=self.memory_folder,
            )
            for place in places
        }
        processes = group.processes(waiting)
        self.incidents.began(self._number, places, processes)
        watching = Watching(
            self.watchdog,
            self.agents,
            ranks=[
                WatchedRank(
                    place=place, process=processes[place.rank], board=specs[place.rank].board
                )
                for place in places
            ],
            view=self.view,
            events=self.run.folder.events,
        )
        group.begin(self.run.work, specs, self.run.folder, waiting)
        controller = Controller(
            group=group,
            limits=self.means.limits,
            view=self.view,
            stop=self.stop,
            events=self.run.folder.events,
            progress=self._progress,
            watching=watching,
            on_step=self.incidents.step,
        )
        try:
            return controller.supervise()
        finally:
            self.phases.current = controller.phase

    def _recover(self, before: Roster, failures: Sequence[Failure]) -> tuple[Roster, JobConfig]:
        """Who goes on, and with what. Raises WorkersFailed or GaveUp where nobody does."""
        cause = first_failure(failures)
        if not worth_a_restart(cause):
            raise WorkersFailed(failures)
        also = [f for f in failures if f.rank != cause.rank and f.kind in ("died", "hung")]
        self.incidents.fault(cause, also)
        faults, allowance = self.incidents.faults, self.means.allowance
        refused = refusal(faults, allowance)
        if refused:
            raise GaveUp(failures, why=refused, story=story(faults), tried=len(faults) - 1)
        self.view.warning(
            f"step {cause.step}: rank {cause.rank} on {cause.host}, {cause.phase}: {cause.error}; "
            "going on from the last step that all ranks have"
        )
        self._sleep(pause_s(faults, allowance))
        lost = self._lost(before, failures)
        for member in lost:
            self.crew.dismiss(member)
            self._start_in_place_of(member)
        job, ranks = self._await_enough(before)
        going = self._with_islands(before, lost, job, ranks)
        if ranks != len(before.members):
            self.incidents.layout_changed(len(before.members), ranks)
            self.view.warning(f"going on with {ranks} ranks instead of {len(before.members)}")
        return next_roster(going, before, ranks), job

    def _lost(self, before: Roster, failures: Sequence[Failure]) -> list[Member]:
        """Processes that are gone, or still blocked in the work that failed."""
        gone = {f.rank for f in failures if f.kind != "raised"}
        members = dict(enumerate(before.members))
        lost_hosts = {members[f.rank].node_id for f in failures if f.host_lost}
        self._lost_nodes |= lost_hosts
        gone |= {rank for rank, member in members.items() if member.node_id in lost_hosts}
        watches = {
            self.crew.actor(member).watch.remote(): rank
            for rank, member in members.items()
            if rank not in gone
        }
        if watches:
            _, blocked = ray.wait(
                list(watches), num_returns=len(watches), timeout=self.means.free_within_s
            )
            gone |= {watches[ref] for ref in blocked}
        return [members[rank] for rank in sorted(gone)]

    def _with_islands(
        self, before: Roster, lost: Sequence[Member], job: JobConfig, ranks: int
    ) -> Sequence[Member]:
        """Settle which islands go on; the processes that may have ranks, rather theirs."""
        count = self.run.job.parallel.island
        if job.parallel.island == count:
            self._islands = ()
            return self.crew.ready
        islands = self._islands or tuple(range(count))
        size = len(before.members) // len(islands)
        had = {m.number: islands[rank // size] for rank, m in enumerate(before.members)}
        self._islands = islands_left(
            count,
            islands,
            without_host={had[m.number] for m in lost if m.node_id in self._lost_nodes},
            broken={had[m.number] for m in lost},
            count=job.parallel.island,
        )
        going = [m for m in self.crew.ready if had.get(m.number, -1) in (-1, *self._islands)]
        return going if len(going) >= ranks else self.crew.ready

    def _start_in_place_of(self, lost: Member) -> None:
        for node in living_nodes(ray.nodes()):
            if node.node_id == lost.node_id and node.node_id not in self._lost_nodes:
                self.crew.start(node, lost.bundle)

    def _await_enough(self, before: Roster) -> tuple[JobConfig, int]:
        """Wait for processes that are starting, while they may still make the run whole again."""
        wanted = self.means.needs.workers
        began_s = time.monotonic()
        waiting = self.phases.begin("starting", deadline_s=self.means.starting_s)
        while True:
            for failure in self.crew.advance(timeout_s=_POLL_S):
                self.view.warning(f"{failure.host}: a new process did not start: {failure.error}")
            ready = len(self.crew.ready)
            missing = f"{wanted - ready} of {wanted} ranks are to be replaced"
            patient = time.monotonic() - began_s < self.means.replace_within_s
            if ready < wanted and self.crew.starting and patient:
                waiting.overrun(missing)
                continue
            found = largest_job(
                self._job(),
                at_most=min(ready, wanted),
                at_least=self.means.min_workers,
                island_ranks=wanted // self.run.job.parallel.island,
            )
            if found is not None:
                return found
            if waiting.overrun(missing):
                raise WorkersFailed([self.incidents.faults[-1].failure])
            time.sleep(_POLL_S)

    def _job(self) -> JobConfig:
        """The job of a later generation: it goes on from what this run has saved, if anything."""
        if not list_complete(self.run.folder.checkpoints):
            return self.run.job
        return replace(self.run.job, run=replace(self.run.job.run, resume="auto"))

    def _sleep(self, seconds: float) -> None:
        """Pause, unless a signal comes."""
        waiting = self.phases.begin("starting", deadline_s=seconds)
        while not waiting.overrun("a pause before the next start"):
            time.sleep(min(_POLL_S, seconds))
