"""All workers of a run: call them together, and tell answers from failures."""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.exit_record import LAST_LINES
from cluster.failure import Failure, WorkersFailed, failure_of
from cluster.preflight import Needs
from cluster.rank import RankSpec
from cluster.reading import Place, Reading
from cluster.waiting import Waiting
from cluster.worker import TrainWorker
from trainer.errors import ExitCode, InfrastructureError
from trainer.run_folder import RunFolder
from trainer.status import Moment

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")

_STOP_CALL_S = 5.0
"""A worker that cannot even note a request in this time is waited for no longer."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What came back from a question to all workers."""

    readings: tuple[Reading, ...]
    failures: tuple[Failure, ...]


class WorkerGroup:
    """Actors by rank. Made inside a placement group with one bundle per place."""

    def __init__(
        self, places: Sequence[Place], group: PlacementGroup, needs: Needs, folder: RunFolder
    ) -> None:
        self.places = tuple(places)
        self._moments = {
            place.rank: Moment(phase="starting", step=0, since_s=time.time()) for place in places
        }
        self._actors: dict[int, Any] = {}
        self._dropped: set[int] = set()
        self._asked: dict[ray.ObjectRef[Any], int] = {}
        # A worker that died stays dead: what goes on without it is decided elsewhere.
        actor = ray.remote(max_restarts=0, max_task_retries=0)(TrainWorker)
        for place in places:
            self._actors[place.rank] = actor.options(
                num_cpus=needs.cpus,
                num_gpus=needs.gpus,
                memory=needs.memory_bytes or None,
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    group, placement_group_bundle_index=place.bundle
                ),
            ).remote(place, str(folder.log("worker", place.rank)))

    def prepare(self, work: str, waiting: Waiting) -> int:
        """Have all workers import the work. Returns a free port of rank 0's host.

        Raises WorkersFailed, or InfrastructureError after the deadline.
        """
        devices = self._gather(
            {rank: actor.devices.remote() for rank, actor in self._actors.items()}, waiting
        )
        visible = visible_devices(self.places, devices)
        ports = self._gather(
            {r: actor.prepare.remote(work, visible[r]) for r, actor in self._actors.items()},
            waiting,
        )
        return ports[0]

    def begin(self, work: str, specs: Mapping[int, RankSpec], waiting: Waiting) -> None:
        """Start the work on all ranks; the specs are by rank. Raises as `prepare` does."""
        self._gather(
            {r: actor.begin.remote(work, specs[r]) for r, actor in self._actors.items()}, waiting
        )

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
                moment = Moment(phase=answer.phase, step=answer.step, since_s=time.time())
                self._moments[answer.rank] = moment
        return Answers(readings=tuple(readings), failures=tuple(failures))

    def request_stop(self) -> None:
        """Ask all workers to save and end; does not wait for that."""
        refs = [actor.request_stop.remote() for actor in self._actors.values()]
        ray.wait(refs, num_returns=len(refs), timeout=_STOP_CALL_S)

    def drop(self, rank: int) -> None:
        """Ask this worker nothing more; it failed. Its process ends with the others."""
        self._dropped.add(rank)

    def close(self) -> None:
        """End all processes at once. May be called in any state."""
        for actor in self._actors.values():
            ray.kill(actor, no_restart=True)
        self._actors.clear()

    def _gather(self, refs: Mapping[int, "ray.ObjectRef[Any]"], waiting: Waiting) -> dict[int, Any]:
        pending = list(refs.values())
        while pending:
            _, pending = ray.wait(pending, num_returns=len(pending), timeout=0.2)
            late = [self.places[rank] for rank, ref in refs.items() if ref in pending]
            missing = ", ".join(f"rank {place.rank} on {place.host}" for place in late)
            if pending and waiting.overrun(f"waiting for {missing}"):
                raise InfrastructureError(
                    f"{waiting.phase}: {missing} not ready after {waiting.elapsed_s:.0f} s "
                    f"(cluster.deadlines.{waiting.phase}_s); raise the deadline, or see the "
                    "worker's log in the run folder"
                )
        values = {rank: self._settle(ref, rank) for rank, ref in refs.items()}
        failures = [value for value in values.values() if isinstance(value, Failure)]
        if failures:
            raise WorkersFailed(failures)
        return values

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
            trace = _COLOURS.sub("", str(error)).splitlines()
            return replace(failure, last_lines=tuple(trace[-LAST_LINES:]))
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


def visible_devices(
    places: Sequence[Place], devices: Mapping[int, Sequence[str]]
) -> dict[int, list[str]]:
    """By rank, the devices of all ranks of its node in the order of local ranks."""
    by_node: dict[str, list[str]] = {}
    for place in sorted(places, key=lambda place: (place.node_id, place.local_rank)):
        by_node.setdefault(place.node_id, []).extend(devices[place.rank])
    return {place.rank: by_node[place.node_id] for place in places}


def end_of_process(message: str) -> str:
    """What Ray knows about a process that ended, without its identifiers and general advice."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    told = " ".join([line for line in lines if "exit detail" in line.lower()] or lines[-1:])
    told = told.partition("Some common causes include")[0]
    told = told.rpartition("Worker exit detail:")[2].strip()
    if "End of file" in told:
        return (
            "it was killed or it crashed, its connection broke off (see its last lines; where the "
            "kernel ended it for want of memory, dmesg says so)"
        )
    return told
