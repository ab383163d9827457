"""The processes that sample: start them, pass messages, notice losses, start others in their place.

Used by the conducting thread alone. Nothing here waits.
"""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import ray
from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayError, RayTaskError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.calls import end_of_process
from cluster.failure import Failure, failure_of
from cluster.rl.line import Line
from cluster.rl.reserve import Place
from cluster.rl.rollout_worker import RolloutSpec, RolloutWorker
from cluster.rl.seat import Seat
from trainer.errors import ExitCode
from trainer.rl.messages import FromRollout, ToRollout
from trainer.run_folder import RunFolder
from trainer.status import Moment

_THREADS = 6
"""Of an actor: one waits for the end of its work and one for messages while others answer."""

_LOOK_S = 1.0
"""Between two looks for a node that can hold a worker."""

Ref: TypeAlias = "ray.ObjectRef[Any]"


@dataclass(frozen=True, kw_only=True)
class LostRollout:
    """A worker that is gone."""

    name: str
    host: str
    reason: str
    exit_code: ExitCode


@dataclass(kw_only=True)
class Happened:
    """Since the last look."""

    up: list[str] = field(default_factory=list)
    lost: list[LostRollout] = field(default_factory=list)
    messages: list[tuple[str, tuple[FromRollout, ...]]] = field(default_factory=list)


@dataclass(kw_only=True)
class _Occupant:
    """The process in a seat, from its start on."""

    name: str
    seat: Seat
    host: str
    actor: Any
    asked: "Ref | None"
    """Whether it is there, then whether its work began."""

    process: int = 0
    """Its number on its host."""

    began_s: float | None = None
    """When it was asked to begin its work; None while Ray looks for room."""

    line: "Line[ToRollout, FromRollout] | None" = None
    watch: "Ref | None" = None

    @property
    def refs(self) -> list[Ref]:
        """What to wait for."""
        own = [ref for ref in (self.asked, self.watch) if ref is not None]
        return own if self.line is None else [*own, *self.line.refs]


class Rollouts:
    """Workers by name. Ended together by `close`."""

    def __init__(
        self,
        *,
        seats: Sequence[Seat],
        find_place: Callable[[Seat], Place | None],
        release: Callable[[Seat], None] = lambda seat: None,
        spec_of: Callable[[Seat, str, str], RolloutSpec],
        folder: RunFolder,
        work: str,
        start_limit_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`find_place` says where a seat is now, `release` that it is given up, `spec_of` what the
        worker of a seat is told, by its name and host. A process that imports longer than
        `start_limit_s` is lost."""
        self._find_place = find_place
        self._release = release
        self._spec_of = spec_of
        self._folder = folder
        self._work = work
        self._start_limit_s = start_limit_s
        self._clock = clock
        self._occupants: dict[str, _Occupant] = {}
        self._empty = list(seats)
        self._starts: dict[int, int] = {}
        self._looked_s: float | None = None

    @property
    def refs(self) -> list[Ref]:
        """What to wait for."""
        return [ref for occupant in self._occupants.values() for ref in occupant.refs]

    def host_of(self, name: str) -> str:
        """Machine of a worker; empty where there is none of that name."""
        occupant = self._occupants.get(name)
        return "" if occupant is None else occupant.host

    def process_of(self, name: str) -> int:
        """Number, on its host, of the process of one that is up."""
        return self._occupants[name].process

    def send(self, name: str, messages: Sequence[ToRollout]) -> None:
        """To one that is up; nothing to one that is gone."""
        occupant = self._occupants.get(name)
        if occupant is not None and occupant.line is not None:
            occupant.line.send(*messages)

    def look(self, done: Collection[Ref]) -> Happened:
        """Move on what has come, of `refs`, and start processes for empty seats."""
        happened = Happened()
        self._fill()
        for occupant in list(self._occupants.values()):
            lost = self._look_at(occupant, done, happened)
            if lost is not None:
                happened.lost.append(lost)
                self.dismiss(occupant.name)
        return happened

    def dismiss(self, name: str) -> None:
        """End a worker at once; another will have its seat."""
        occupant = self._occupants.pop(name, None)
        if occupant is not None:
            ray.kill(occupant.actor, no_restart=True)
            self._empty.append(occupant.seat)
            self._looked_s = None

    def add(self, seat: Seat) -> None:
        """Have a worker in this seat too."""
        self._empty.append(seat)
        self._looked_s = None

    def leave(self, seat: Seat) -> str:
        """End the worker of a seat that is given up; its name, empty where nobody was there."""
        for name, occupant in self._occupants.items():
            if occupant.seat == seat:
                self.dismiss(name)
                break
        else:
            name = ""
        self._empty.remove(seat)
        self._release(seat)
        return name

    def without_place(self) -> list[Seat]:
        """Spare seats for which no room was found yet."""
        return [seat for seat in self._empty if seat.spare]

    def close(self) -> None:
        """End all at once."""
        for name in list(self._occupants):
            self.dismiss(name)
        self._empty.clear()

    def _fill(self) -> None:
        now_s = self._clock()
        if not self._empty or (self._looked_s is not None and now_s - self._looked_s < _LOOK_S):
            return
        self._looked_s = now_s
        for seat in list(self._empty):
            place = self._find_place(seat)
            if place is not None:
                self._empty.remove(seat)
                self._start(seat, place)

    def _start(self, seat: Seat, place: Place) -> None:
        start = self._starts.get(seat.index, 0)
        self._starts[seat.index] = start + 1
        name = f"rollout-{seat.index}" + (f".{start}" if start else "")
        actor = ray.remote(max_restarts=0, max_task_retries=0)(RolloutWorker)
        made: Any = actor.options(
            max_concurrency=_THREADS,
            num_cpus=seat.cpus,
            num_gpus=seat.gpus,
            memory=seat.memory_bytes or None,
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                place.group, placement_group_bundle_index=place.bundle
            ),
        ).remote(place.node.address, str(self._folder.log("rollout", seat.index)))
        self._occupants[name] = _Occupant(
            name=name, seat=seat, host=place.node.host, actor=made, asked=made.process.remote()
        )

    def _look_at(
        self, occupant: _Occupant, done: Collection[Ref], happened: Happened
    ) -> LostRollout | None:
        try:
            if occupant.asked is not None:
                return self._starting(occupant, done, happened)
            assert occupant.line is not None
            assert occupant.watch is not None
            messages = occupant.line.take(done)
            if messages:
                happened.messages.append((occupant.name, messages))
            if occupant.watch in done:
                return self._ended(occupant)
        except RayError as error:
            return _death(occupant, error)
        return None

    def _starting(
        self, occupant: _Occupant, done: Collection[Ref], happened: Happened
    ) -> LostRollout | None:
        assert occupant.asked is not None
        now_s = self._clock()
        if occupant.asked not in done:
            late = occupant.began_s is not None and now_s - occupant.began_s > self._start_limit_s
            told = f"not ready after {self._start_limit_s:g} s (cluster.deadlines.starting_s)"
            return _lost(occupant, told) if late else None
        answer = ray.get(occupant.asked)
        if occupant.began_s is None:
            occupant.began_s, occupant.process = now_s, answer
            spec = self._spec_of(occupant.seat, occupant.name, occupant.host)
            occupant.asked = occupant.actor.begin.remote(self._work, spec)
            return None
        occupant.asked, occupant.line = None, Line(occupant.actor)
        occupant.watch = occupant.actor.watch.remote()
        happened.up.append(occupant.name)
        return None

    def _ended(self, occupant: _Occupant) -> LostRollout | None:
        assert occupant.watch is not None
        try:
            failure: Failure | None = ray.get(occupant.watch)
        except ActorUnavailableError:
            occupant.watch = occupant.actor.watch.remote()
            return None
        if failure is None:
            return _lost(occupant, "it ended without being asked to")
        return _lost(occupant, failure.error, failure.exit_code)


def _lost(
    occupant: _Occupant, reason: str, exit_code: ExitCode = ExitCode.INFRASTRUCTURE
) -> LostRollout:
    return LostRollout(name=occupant.name, host=occupant.host, reason=reason, exit_code=exit_code)


def _death(occupant: _Occupant, error: RayError) -> LostRollout:
    own = error.cause if isinstance(error, RayTaskError) else None
    if isinstance(own, Exception):
        moment = Moment(phase="starting", step=0, since_s=time.time())
        failure = failure_of(
            own, moment=moment, rank=occupant.seat.index, host=occupant.host, now_s=time.time()
        )
        return _lost(occupant, failure.error, failure.exit_code)
    detail = end_of_process(str(error))
    memory = isinstance(error, OutOfMemoryError) or "low on memory" in detail
    told = "it ran out of memory: " if memory else "the process ended: "
    return _lost(occupant, told + detail)
