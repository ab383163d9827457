"""The driver's loop over running workers: read, show, watch, stop."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.failure import Failure, WorkersFailed, only_echoes
from cluster.progress import Progress
from cluster.reading import Outcome, Reading
from cluster.signals import StopSignals
from cluster.startup import ORDER, least_far, overrun
from cluster.view import RunView
from cluster.waiting import REPEAT_S
from cluster.watching import Watching
from cluster.worker_group import Answers, WorkerGroup
from trainer.errors import ExitCode

POLL_S = 0.25
TRAINING_POLL_S = 1.0
"""Answering takes time from training; once steps follow each other, a second is soon enough. To
look at ranks from outside takes none, and is done at every poll."""

OWN_WORDS_S = 1.0
"""How long Ray may take to say how a process ended that was seen to be gone."""

GRACE_S = 2.0
"""After the first failure: how long others may still fail, since the cause can come second."""

ECHO_GRACE_S = 20.0
"""The same while all failures are lost connections: the death of a host is noticed late."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Seconds and steps after which the controller acts."""

    phases_s: dict[str, float]
    """Per start-up phase of the workers."""

    stop_grace_s: float


@dataclass
class _Seen:
    """The newest reading of a rank and when it came, by the driver's clock."""

    reading: Reading
    at_s: float


@dataclass(kw_only=True)
class Controller:
    """Supervises one group of workers from their first phase to their last."""

    group: WorkerGroup
    limits: Limits
    view: RunView
    stop: StopSignals
    progress: Progress
    watching: Watching
    on_step: Callable[[dict[str, Any]], None]
    on_poll: Callable[[], None]
    """Called a few times a second; waits for nothing. Raises what ended a process that is none of
    the ranks."""

    other_ranks: Callable[[], bool]
    """Whether another number of ranks is ready to go on; asked often, acts once."""

    clock: Callable[[], float] = time.monotonic

    _seen: dict[int, _Seen] = field(default_factory=dict, init=False)
    _phase: str = field(default="starting", init=False)
    _said_s: float = field(default=0.0, init=False)
    _asked_s: float = field(default=0.0, init=False)
    _failed: set[int] = field(default_factory=set, init=False)
    _urgent: bool = field(default=True, init=False)
    _began_s: float = field(default=0.0, init=False)
    _stopping_s: float | None = field(default=None, init=False)
    _regrouping: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._began_s = self._said_s = self.clock()

    @property
    def phase(self) -> str:
        """The phase the group is in, `training` from its first step on."""
        return self._phase

    def supervise(self) -> Outcome:
        """Until all ranks are done. Raises WorkersFailed with all failures there are, and
        StopRequested where a signal came before the first step."""
        while True:
            answers = self._ask_if_due()
            self._take(answers)
            self._say_phase(until="training")
            self._show_steps(answers)
            self._say_phase(until="stopping")
            failures = self._failures(answers)
            if failures:
                raise WorkersFailed(self._collect(failures))
            if self._all_done():
                outcome = self._seen[0].reading.outcome
                assert outcome is not None
                return outcome
            self._watch_deadlines()
            self._watch_stop()
            self.on_poll()
            self._watch_number()
            self._urgent = self.group.pause(POLL_S)

    def _ask_if_due(self) -> Answers:
        """Ask all ranks, less often while they train undisturbed."""
        training = all(seen.reading.phase == "training" for seen in self._seen.values())
        calm = training and not self.stop.requested and not self._urgent
        if calm and self.clock() - self._asked_s < TRAINING_POLL_S:
            return Answers(readings=(), failures=())
        self._asked_s = self.clock()
        return self.group.read(timeout_s=POLL_S)

    def _take(self, answers: Answers) -> None:
        """Remember readings."""
        for reading in answers.readings:
            self._seen[reading.rank] = _Seen(reading, self.clock())
            self.watching.memory(reading)

    def _show_steps(self, answers: Answers) -> None:
        for reading in answers.readings:
            for record in self.progress.advance(reading.reports):
                self.view.step(record)
                self.on_step(record)
                self.watching.step(record)

    def _failures(self, answers: Answers) -> list[Failure]:
        raised = [reading.failure for reading in answers.readings if reading.failure]
        failures = [*raised, *answers.failures]
        found = [f for f in self.watching.poll() if f.rank not in self._failed]
        failures += self._own_words([f for f in found if f.kind == "died" and not f.host_lost])
        failures += found
        new = {f.rank: f for f in reversed(failures) if f.rank not in self._failed}
        for rank in new:
            self._failed.add(rank)
            self.group.drop(rank)
        return list(new.values())

    def _own_words(self, found: Sequence[Failure]) -> list[Failure]:
        """What Ray says of processes that were seen to be gone, if it does so soon: it knows how
        they ended."""
        began_s = self.clock()
        told: list[Failure] = []
        missing = {f.rank for f in found}
        while missing:
            answers = self.group.read(timeout_s=POLL_S)
            self._take(answers)
            self._show_steps(answers)
            told += [reading.failure for reading in answers.readings if reading.failure]
            told += answers.failures
            missing -= {f.rank for f in told}
            if not missing or self.clock() - began_s > OWN_WORDS_S:
                break
            # Survivors, who answer at once, are not asked without a pause.
            self.group.pause(POLL_S)
        return told

    def _collect(self, failures: list[Failure]) -> list[Failure]:
        """Wait for what other ranks have to say; those who stay silent are listed too."""
        began_s = self.clock()
        while self._still_working(failures):
            grace_s = ECHO_GRACE_S if only_echoes(failures) else GRACE_S
            if self.clock() - began_s > grace_s:
                break
            self.group.pause(POLL_S)
            answers = self.group.read(timeout_s=POLL_S)
            self._take(answers)
            self._show_steps(answers)
            failures.extend(self._failures(answers))
        return failures + self._silent(failures, began_s)

    def _still_working(self, failures: Sequence[Failure]) -> bool:
        ended = {failure.rank for failure in failures}
        ended |= {rank for rank, seen in self._seen.items() if seen.reading.outcome}
        return len(ended) < len(self.group.places)

    def _silent(self, failures: Sequence[Failure], since_s: float) -> list[Failure]:
        failed = {failure.rank for failure in failures}
        silent = []
        for rank, seen in self._seen.items():
            if rank in failed or seen.at_s >= since_s:
                continue
            elapsed_s = self.clock() - seen.at_s
            error = f"the worker has not answered for {elapsed_s:.0f} s"
            silent.append(self._blame(rank, error, kind_silent=True))
        return silent

    def _all_done(self) -> bool:
        return len(self._seen) == len(self.group.places) and all(
            seen.reading.outcome for seen in self._seen.values()
        )

    def _phases(self) -> dict[int, tuple[str, float]]:
        """Phase and seconds spent in it, by rank; a rank that never answered is starting."""
        now_s = self.clock()
        phases = {place.rank: ("starting", now_s - self._began_s) for place in self.group.places}
        for rank, seen in self._seen.items():
            phases[rank] = (seen.reading.phase, seen.reading.elapsed_s + now_s - seen.at_s)
        return phases

    def _say_phase(self, *, until: str) -> None:
        """Say which phase the group is in, unless that lies after `until`."""
        phases = self._phases()
        phase, ranks = least_far({rank: own for rank, (own, _) in phases.items()})
        if self._stopping_s is not None or ORDER.index(phase) > ORDER.index(until):
            return
        now_s = self.clock()
        if phase != self._phase:
            self._phase, self._said_s = phase, now_s
            self.view.phase(phase, "")
        elif ORDER.index(phase) < ORDER.index("training") and now_s - self._said_s >= REPEAT_S:
            self._said_s = now_s
            whom = ", ".join(f"rank {rank} on {self.group.places[rank].host}" for rank in ranks)
            self.view.phase(phase, f"{phases[ranks[0]][1]:.0f} s; waiting for {whom}")

    def _watch_deadlines(self) -> None:
        late = overrun(self._phases(), self.limits.phases_s, self.group.places)
        if late:
            raise WorkersFailed([self._blame(*late)])

    def _watch_stop(self) -> None:
        """Pass a signal on to the workers, and give up on those that do not end in time."""
        self.stop.check_insistence()
        if not self.stop.requested:
            return
        if self._stopping_s is None:
            self._end_before_steps()
            self._stopping_s = self.clock()
            self.view.phase("stopping", f"{self.stop.name}: saving, then ending")
            self.group.request_stop()
        if self.clock() - self._stopping_s > self.limits.stop_grace_s:
            phases = {rank: phase for rank, (phase, _) in self._phases().items()}
            rank = least_far(phases)[1][0]
            error = (
                f"{self.stop.name}: not saved within {self.limits.stop_grace_s:g} s; raise "
                "cluster.stop_grace_s. The newest complete checkpoint is the one before"
            )
            raise WorkersFailed([self._blame(rank, error)])

    def _watch_number(self) -> None:
        """Have the ranks leave at a step that is in memory once another number could go on."""
        if self._stopping_s is None and not self._regrouping and self.other_ranks():
            self._regrouping = True
            self.group.request_regroup()

    def _end_before_steps(self) -> None:
        """Raise StopRequested where no rank is at its steps: there is nothing to save."""
        first_step = ORDER.index("first_step")
        if all(ORDER.index(phase) < first_step for phase, _ in self._phases().values()):
            self.stop.check(self._phase)

    def _blame(self, rank: int, error: str, *, kind_silent: bool = False) -> Failure:
        """A failure found from outside the process."""
        seen = self._seen.get(rank)
        return Failure(
            kind="silent" if kind_silent else "raised",
            rank=rank,
            host=self.group.places[rank].host,
            phase=seen.reading.phase if seen else "starting",
            step=seen.reading.step if seen else 0,
            error=error,
            exit_code=ExitCode.INFRASTRUCTURE,
            time_s=time.time(),
        )
