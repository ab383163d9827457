"""All worker processes of a run, with a rank or without: start them, have them import, end them."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

from cluster.calls import end_of_process, plain_lines
from cluster.exit_record import LAST_LINES
from cluster.failure import Failure, failure_of
from cluster.placement import nodes_of_bundles
from cluster.preflight import Needs, Node
from cluster.recovery.roster import Member
from cluster.worker import TrainWorker
from trainer.errors import ExitCode
from trainer.run_folder import RunFolder
from trainer.status import Moment

_THREADS = 6
"""Of an actor: one waits for the end of its work and one for messages while others answer."""


@dataclass(kw_only=True)
class _Start:
    """How far a process is from being ready."""

    asked: "ray.ObjectRef[Any]"
    """Its devices, then to import the work."""

    devices: list[str] | None = None
    importing: bool = False


class Crew:
    """Worker processes by number. Ended together by `close`."""

    def __init__(self, group: PlacementGroup, needs: Needs, folder: RunFolder, work: str) -> None:
        self._group = group
        self.needs = needs
        self._folder = folder
        self._work = work
        self._members: dict[int, Member] = {}
        self._actors: dict[int, Any] = {}
        self._starts: dict[int, _Start] = {}
        self._visible: dict[str, list[str]] = {}
        self._started = 0
        self._places = set(range(needs.first_rollout_bundle))

    @property
    def ready(self) -> list[Member]:
        """Processes that can work or do, in the order of their numbers."""
        return [member for number, member in self._members.items() if number not in self._starts]

    @property
    def starting(self) -> list[Member]:
        """Processes that are not ready yet."""
        return [self._members[number] for number in self._starts]

    def start(self, node: Node, bundle: int | None) -> Member:
        """Start one process; `advance` makes it ready."""
        member = Member(
            number=self._started,
            bundle=bundle,
            node_id=node.node_id,
            host=node.host,
            address=node.address,
            is_head=node.is_head,
        )
        self._started += 1
        # A worker that died stays dead: what goes on without it is decided elsewhere.
        actor = ray.remote(max_restarts=0, max_task_retries=0)(TrainWorker)
        self._actors[member.number] = actor.options(
            max_concurrency=_THREADS,
            num_cpus=0 if self._is_spare(bundle) else self.needs.cpus,
            num_gpus=self.needs.gpus,
            memory=self.needs.memory_bytes or None,
            scheduling_strategy=self._strategy(member),
        ).remote(node.address, str(self._folder.log("worker", member.number)))
        self._members[member.number] = member
        self._starts[member.number] = _Start(asked=self._actors[member.number].devices.remote())
        return member

    def _is_spare(self, bundle: int | None) -> bool:
        """Whether a place is for a process that waits."""
        needs = self.needs
        return bundle is not None and needs.workers <= bundle < needs.first_rollout_bundle

    def _strategy(
        self, member: Member
    ) -> PlacementGroupSchedulingStrategy | NodeAffinitySchedulingStrategy:
        if member.bundle is None:
            return NodeAffinitySchedulingStrategy(member.node_id, soft=False)
        return PlacementGroupSchedulingStrategy(
            self._group, placement_group_bundle_index=member.bundle
        )

    def advance(self, *, timeout_s: float) -> list[Failure]:
        """Move starting processes on, waiting `timeout_s` at most. Those that could not start are
        ended, and returned as failures under their numbers."""
        failed: list[Failure] = []
        asked = {start.asked: number for number, start in self._starts.items()}
        if not asked:
            return failed
        done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=timeout_s)
        for ref in done:
            number = asked[ref]
            try:
                self._answered(number, ray.get(ref))
            except RayError as error:
                failed.append(_failed_start(self._members[number], error))
                self.dismiss(self._members[number])
        self._have_them_import()
        return failed

    def _answered(self, number: int, answer: Any) -> None:
        if self._starts[number].importing:
            self._members[number] = replace(self._members[number], process=int(answer))
            del self._starts[number]
        else:
            self._starts[number].devices = answer

    def _have_them_import(self) -> None:
        """A process sees the devices of all on its node, so those that start together import
        together. What it sees once stays: a library may have counted it."""
        unknown = {
            self._members[number].node_id
            for number, start in self._starts.items()
            if start.devices is None
        }
        knowing = {
            number: start
            for number, start in self._starts.items()
            if not start.importing and self._members[number].node_id not in unknown
        }
        for number, start in knowing.items():
            seen = self._visible.setdefault(self._members[number].node_id, [])
            seen.extend(device for device in start.devices or () if device not in seen)
        for number, start in knowing.items():
            member = self._members[number]
            seen = self._visible[member.node_id]
            if start.devices:
                device = seen.index(start.devices[0])
                self._members[number] = replace(member, device=device)
            start.asked = self._actors[number].prepare.remote(self._work, seen)
            start.importing = True

    def actor(self, member: Member) -> Any:
        """Its handle."""
        return self._actors[member.number]

    def actors(self, members: Sequence[Member]) -> dict[int, Any]:
        """Their handles by number."""
        return {member.number: self._actors[member.number] for member in members}

    def free_bundles(self) -> dict[int, str]:
        """Places in the placement group for ranks that have no process, and the node that has room
        for each: of a lost node Ray moves them to another, once there is one with room."""
        taken = {member.bundle for member in self._members.values()}
        return {
            bundle: node
            for bundle, node in nodes_of_bundles(self._group).items()
            if bundle in self._places and bundle not in taken
        }

    def take_place(self, bundle: int) -> None:
        """Have a place in the placement group that another kind of process had."""
        self._places.add(bundle)

    def leave_place(self, bundle: int) -> None:
        """Leave a place, which has no process, to another kind."""
        self._places.discard(bundle)

    def dismiss(self, member: Member) -> None:
        """End one process at once, whatever it does."""
        ray.kill(self._actors.pop(member.number), no_restart=True)
        del self._members[member.number]
        self._starts.pop(member.number, None)

    def close(self) -> None:
        """End all processes at once. May be called in any state."""
        for member in list(self._members.values()):
            self.dismiss(member)


def _failed_start(member: Member, error: RayError) -> Failure:
    moment = Moment(phase="starting", step=0, since_s=time.monotonic())
    own = error.cause if isinstance(error, RayTaskError) else None
    if isinstance(own, Exception):
        found = failure_of(
            own, moment=moment, rank=member.number, host=member.host, now_s=time.time()
        )
        return replace(found, last_lines=tuple(plain_lines(error)[-LAST_LINES:]))
    return Failure(
        kind="died",
        rank=member.number,
        host=member.host,
        phase="starting",
        step=0,
        error=f"the worker process ended: {end_of_process(str(error))}",
        exit_code=ExitCode.INFRASTRUCTURE,
        time_s=time.time(),
    )
