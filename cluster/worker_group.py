"""The ranks of one generation: call them together, and tell answers from failures."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayError, RayTaskError

from cluster.calls import end_of_process, plain_lines, unanswered
from cluster.exit_record import LAST_LINES
from cluster.failure import Failure, WorkersFailed, failure_of
from cluster.rank import RankSpec
from cluster.reading import Place, Reading
from cluster.waiting import Waiting
from trainer.errors import ExitCode
from trainer.run_folder import RunFolder
from trainer.status import Moment

_STOP_CALL_S = 5.0
"""A worker that cannot even note a request in this time is waited for no longer."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What came back from a question to all workers."""

    readings: tuple[Reading, ...]
    failures: tuple[Failure, ...]


class WorkerGroup:
    """Actors by rank, while they work together."""

    def __init__(self, places: Sequence[Place], actors: Sequence[Any]) -> None:
        self.places = tuple(places)
        self._actors = dict(enumerate(actors))
        self._moments = {
            place.rank: Moment(phase="starting", step=0, since_s=time.monotonic())
            for place in places
        }
        self._dropped: set[int] = set()
        self._asked: dict[ray.ObjectRef[Any], int] = {}
        self._watches: dict[ray.ObjectRef[Any], int] = {}

    def port(self, waiting: Waiting) -> int:
        """A free port of rank 0's host. Raises as `begin` does."""
        return int(self._gather({0: self._actors[0].port.remote()}, waiting)[0])

    def begin(
        self, work: str, specs: Mapping[int, RankSpec], folder: RunFolder, waiting: Waiting
    ) -> None:
        """Start the work on all ranks; the specs are by rank.

        Raises WorkersFailed, also for ranks that have not answered when `waiting` is over.
        """
        self._gather(
            {
                rank: actor.begin.remote(work, specs[rank], str(folder.log("worker", rank)))
                for rank, actor in self._actors.items()
            },
            waiting,
        )
        self._watches = {actor.watch.remote(): rank for rank, actor in self._actors.items()}

    def pause(self, seconds: float) -> bool:
        """Wait, but not beyond the moment at which a rank's work or process ends; whether one
        did."""
        watched = [ref for ref, rank in self._watches.items() if rank not in self._dropped]
        if not watched:
            time.sleep(seconds)
            return False
        ended, _ = ray.wait(watched, num_returns=1, timeout=seconds)
        for ref in ended:
            del self._watches[ref]
        return bool(ended)

    def read(self, *, timeout_s: float) -> Answers:
        """Ask every worker that owes no answer; collect what arrives within `timeout_s`."""
        owing = self._dropped | set(self._asked.values())
        for rank, actor in self._actors.items():
            if rank not in owing:
                self._asked[actor.read.remote()] = rank
        if not self._asked:
            return Answers(readings=(), failures=())
        asked = list(self._asked)
        ready, _ = ray.wait(asked, num_returns=len(asked), timeout=timeout_s)
        readings: list[Reading] = []
        failures: list[Failure] = []
        for ref in ready:
            answer = self._settle(ref, self._asked.pop(ref))
            if isinstance(answer, Failure):
                failures.append(answer)
            elif answer is not None:
                readings.append(answer)
                moment = Moment(phase=answer.phase, step=answer.step, since_s=time.monotonic())
                self._moments[answer.rank] = moment
        return Answers(readings=tuple(readings), failures=tuple(failures))

    def request_stop(self) -> None:
        """Ask all workers to save and end; does not wait for that."""
        refs = [actor.request_stop.remote() for actor in self._actors.values()]
        ray.wait(refs, num_returns=len(refs), timeout=_STOP_CALL_S)

    def request_regroup(self) -> None:
        """Ask all workers to end at a step that is in memory; does not wait."""
        for actor in self._actors.values():
            actor.request_regroup.remote()

    def drop(self, rank: int) -> None:
        """Ask this rank nothing more; it failed."""
        self._dropped.add(rank)

    def _gather(self, refs: Mapping[int, "ray.ObjectRef[Any]"], waiting: Waiting) -> dict[int, Any]:
        def describe(rank: int) -> str:
            return f"rank {rank} on {self.places[rank].host}"

        silent = unanswered(refs, waiting, describe)
        values = {
            rank: self._silence(self.places[rank], waiting)
            if rank in silent
            else self._settle(ref, rank)
            for rank, ref in refs.items()
        }
        failures = [value for value in values.values() if isinstance(value, Failure)]
        if failures:
            raise WorkersFailed(failures)
        return values

    def _silence(self, place: Place, waiting: Waiting) -> Failure:
        return Failure(
            kind="hung",
            rank=place.rank,
            host=place.host,
            phase=waiting.phase,
            step=0,
            error=f"the process was ready and has not answered for {waiting.elapsed_s:.0f} s",
            exit_code=ExitCode.INFRASTRUCTURE,
            time_s=time.time(),
            detected_s=waiting.elapsed_s,
        )

    def _settle(self, ref: "ray.ObjectRef[Any]", rank: int) -> Any:
        """The answer, or the Failure that came instead; None where it is to be asked again."""
        place = self.places[rank]
        try:
            return ray.get(ref)
        except ActorUnavailableError:
            return None
        except RayTaskError as error:
            failure = failure_of(
                error.cause if isinstance(error.cause, Exception) else error,
                moment=self._moments[rank],
                rank=rank,
                host=place.host,
                now_s=time.time(),
            )
            return replace(failure, last_lines=tuple(plain_lines(error)[-LAST_LINES:]))
        except RayError as error:
            return self._death(error, place)

    def _death(self, error: RayError, place: Place) -> Failure:
        moment = self._moments[place.rank]
        detail = end_of_process(str(error))
        memory = isinstance(error, OutOfMemoryError) or "low on memory" in detail
        return Failure(
            kind="died",
            rank=place.rank,
            host=place.host,
            phase=moment.phase,
            step=moment.step,
            error=f"the worker process ended: {detail}",
            exit_code=ExitCode.RESOURCES if memory else ExitCode.INFRASTRUCTURE,
            time_s=time.time(),
        )
