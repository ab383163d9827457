"""A run over its faults: put ranks together, follow them, and after a fault put them together anew.

What a generation learned lives outside its processes, in snapshots and checkpoints; what is kept
here is who works and how often it went wrong.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cluster.agents import Agents
from cluster.beside import Beside, Nothing
from cluster.controller import Controller
from cluster.crew import Crew
from cluster.failure import Failure, GaveUp, WorkersFailed, first_failure
from cluster.idle import IdleWatch, unanswering
from cluster.islands import GoingIslands
from cluster.losses import Losses
from cluster.means import Means
from cluster.memory_folder import folders_in_memory, memory_folder
from cluster.progress import Progress
from cluster.reading import Outcome
from cluster.recovery.budget import pause_s, refusal, story, worth_a_restart
from cluster.recovery.incidents import Incidents
from cluster.recovery.roster import Member, Roster, first_roster, next_roster
from cluster.recovery.shrink import largest_job
from cluster.replicas import Replicas, open_replicas
from cluster.run import Run
from cluster.run_info import write_run_info
from cluster.sharing import Sharing
from cluster.signals import StopSignals
from cluster.specs import specs_of
from cluster.staffing import Staffing, open_staffing
from cluster.telling import Telling
from cluster.view import RunView
from cluster.waiting import Phases
from cluster.watchdog.watch import Watchdog
from cluster.watching import Watching, watched_ranks
from cluster.worker_group import WorkerGroup
from trainer.checkpoint.folder import list_complete
from trainer.config import JobConfig

_POLL_S = 0.1

_ANSWER_S = 10.0
"""A process that has imported everything answers at once, unless it is stopped or gone."""


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
    beside: Beside = field(default_factory=Nothing)

    incidents: Incidents = field(init=False)
    _progress: Progress = field(default_factory=Progress, init=False)
    _number: int = field(default=0, init=False)
    _working: frozenset[int] = field(default=frozenset(), init=False)
    _telling: Telling = field(init=False)
    _idle: IdleWatch = field(default_factory=lambda: IdleWatch(time.monotonic), init=False)
    _rest_s: float = field(default=float("inf"), init=False)
    _staffing: Staffing = field(init=False)
    _sharing: Sharing = field(init=False)
    _replicas: Replicas = field(init=False)
    _islands: GoingIslands = field(init=False)
    _losses: Losses = field(init=False)

    memory_folder: str = field(init=False)

    def __post_init__(self) -> None:
        self.memory_folder = str(memory_folder(self.run.folder.root))
        self.incidents = Incidents(self.run.folder.events, clock=time.monotonic, now=time.time)
        self._telling = Telling(
            self.run.folder, run=self.run.job.run.name, project=self.project, clock=time.monotonic
        )
        self._staffing = open_staffing(
            self.crew, self.means, view=self.view, events=self.run.folder.events
        )
        self._sharing = Sharing(self.crew, self._staffing, self.beside, self.means.starting_s)
        self._replicas = open_replicas(self.run, share=self.means.replica_share)
        self._islands = GoingIslands(self.run.job)
        self._losses = Losses(
            crew=self.crew,
            staffing=self._staffing,
            incidents=self.incidents,
            free_within_s=self.means.free_within_s,
        )

    def to_the_end(self) -> Outcome:
        """Until a generation ends as asked. The crew's processes are ready.

        Raises WorkersFailed where a fault is not worth another start, GaveUp where there were too
        many, StopRequested where a signal came while there was nothing to save.
        """
        job = self.run.job
        roster = first_roster(self.crew.ready, self.means.needs.workers)
        write_run_info(self.run, roster.places())
        over = False
        try:
            while True:
                try:
                    outcome = self._one(roster, job)
                except WorkersFailed as error:
                    self.beside.lost()
                    roster, job = self._recover(roster, error.failures)
                else:
                    over = outcome.kind != "regrouped"
                    if over:
                        self._free_memory()
                        return outcome
                    self.beside.lost()
                    roster, job = self._regroup(roster)
                self._number += 1
        finally:
            self._replicas.close(clean=over)
            self.agents.remove(self.memory_folder)
            self._telling.close()

    def _free_memory(self) -> None:
        """The last checkpoint is on disk. Ranks have removed their own snapshots; hosts that had
        ranks earlier may hold more."""
        for folder in folders_in_memory(self.run.folder.root, self.run.job.keep.dir):
            self.agents.remove(str(folder))

    def _one(self, roster: Roster, job: JobConfig) -> Outcome:
        places = roster.places()
        self._working = frozenset(member.number for member in roster.members)
        group = WorkerGroup(places, [self.crew.actor(member) for member in roster.members])
        waiting = self.phases.begin("starting", deadline_s=_ANSWER_S)
        port = group.port(waiting)
        specs = specs_of(
            places,
            port=port,
            generation=self._number,
            means=self.means,
            job=job,
            project=self.project,
            explicit=self.explicit,
            memory_folder=self.memory_folder,
            islands=self._islands.numbers,
        )
        processes = {rank: member.process for rank, member in enumerate(roster.members)}
        self.incidents.began(self._number, places, processes)
        watching = Watching(
            self.watchdog,
            self.agents,
            ranks=watched_ranks(places, processes, specs),
            view=self.view,
            events=self.run.folder.events,
        )
        self._replicas.begin(places, islands=job.parallel.island)
        group.begin(self.run.work, specs, self.run.folder, waiting)
        self.beside.began(self._number, self.crew.actor(roster.members[0]))
        controller = Controller(
            group=group,
            limits=self.means.limits,
            view=self.view,
            stop=self.stop,
            progress=self._progress,
            watching=watching,
            on_step=self._step,
            on_poll=self._tend,
            other_ranks=lambda: self._others_than(len(places)),
        )
        try:
            return controller.supervise()
        finally:
            self.phases.current = controller.phase

    def _others_than(self, ranks: int) -> bool:
        """Whether another number of ranks shall go on; looks for room for more while they train."""
        if self.run.job.parallel.island != 1:
            return False  # Islands stop at steps of their own.
        return self._sharing.others_ready(ranks, self._job, rest_s=self._rest_s)

    def _regroup(self, before: Roster) -> tuple[Roster, JobConfig]:
        """Another number of ranks goes on, without a fault."""
        job, ranks = self._await_enough(before)
        return self._next(self.crew.ready, before, ranks), job

    def _next(self, going: Sequence[Member], before: Roster, ranks: int) -> Roster:
        self._tell_change(before, ranks)
        roster = next_roster(going, before, ranks)
        self._sharing.settle(roster)
        return roster

    def _tell_change(self, before: Roster, ranks: int) -> None:
        if ranks == len(before.members):
            return
        self._staffing.changed(fewer=ranks < len(before.members))
        self.incidents.layout_changed(len(before.members), ranks)
        self.view.warning(f"going on with {ranks} ranks instead of {len(before.members)}")

    def _recover(self, before: Roster, failures: Sequence[Failure]) -> tuple[Roster, JobConfig]:
        """Who goes on, and with what. Raises WorkersFailed or GaveUp where nobody does."""
        cause = first_failure(failures)
        if not worth_a_restart(cause):
            raise WorkersFailed(failures)
        also = [f for f in failures if f.rank != cause.rank and f.kind in ("died", "hung")]
        self.incidents.fault(cause, also)
        if self.stop.requested:
            # It was to save and end; another start would only hide that it did not.
            raise WorkersFailed(failures)
        faults, allowance = self.incidents.faults, self.means.allowance
        refused = refusal(faults, allowance)
        if refused:
            raise GaveUp(failures, why=refused, story=story(faults), tried=len(faults) - 1)
        self.view.warning(
            f"step {cause.step}: rank {cause.rank} on {cause.host}, {cause.phase}: {cause.error}; "
            "going on from the last step that all ranks have"
        )
        self._sleep(pause_s(faults, allowance))
        lost = self._losses.among(before, failures)
        for member in lost:
            self._replace(member)
        silent = unanswering(self.crew.actors(self.crew.ready), within_s=_ANSWER_S)
        for member in (one for one in self.crew.ready if one.number in silent):
            lost.append(member)
            self._replace(member)
        job, ranks = self._await_enough(before)
        going = self._islands.settle(
            before, lost, self.crew.ready, job=job, ranks=ranks, host_lost=self._staffing.is_lost
        )
        return self._next(going, before, ranks), self._islands.shared_out(job)

    def _step(self, record: dict[str, Any]) -> None:
        self._rest_s = float(record["eta_s"])
        self.incidents.step(record)
        self._replicas.step(record)
        self._telling.step()
        self.beside.step(record)

    def _tend(self) -> None:
        """Have spares made ready, and those replaced that died; waits for nothing."""
        self.beside.check(self.view)
        self._sharing.listen()
        self._telling.poll()
        self._staffing.advance(timeout_s=0.0)
        spares = [m for m in self.crew.ready if m.number not in self._working]
        gone = self._idle.gone(self.crew.actors(spares))
        for lost in (spare for spare in spares if spare.number in gone):
            self.incidents.spare_lost(lost.host, lost.number)
            self._replace(lost)

    def _replace(self, lost: Member) -> None:
        """End a process, also one that is stopped, and start another there."""
        self.agents.end(lost.node_id, lost.process)
        self.crew.dismiss(lost)
        self._staffing.replace(lost)

    def _await_enough(self, before: Roster) -> tuple[JobConfig, int]:
        """Wait for processes that are starting, while they may still make the run whole again."""
        wanted = self._sharing.wanted
        began_s = time.monotonic()
        waiting = self.phases.begin("starting", deadline_s=self.means.starting_s)
        while True:
            self._telling.poll()
            self._staffing.advance(timeout_s=_POLL_S)
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
            self._staffing.refill(lost_too=False)
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
            self._telling.poll()
            time.sleep(min(_POLL_S, seconds))
