"""What the conducting thread does, again and again: hear, wait, decide, act."""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import ray
from ray.exceptions import RayError

from cluster.beside import Wish
from cluster.rewards.pool import RewardPool
from cluster.rl.channel_store import StoreKeeper
from cluster.rl.line import Line
from cluster.rl.losses import Loss, exit_code_of, refusal, story
from cluster.rl.rollouts import LostRollout, Rollouts
from cluster.rl.seating import Moves, Seating
from cluster.rl.state import StateFile
from trainer.errors import BraidError, ExitCode
from trainer.rl.conducting.actions import Actions
from trainer.rl.conducting.conductor import Conductor
from trainer.rl.conducting.split import Split
from trainer.rl.messages import Answered, FromTrainer, ToTrainer
from trainer.run_folder import RunFolder, append_event

_TURN_S = 0.25
"""Longest time between two looks at everything."""

_REWARDING_TURN_S = 0.01
"""The same while rewards are under way, whose processes are no actors."""

_TICK_S = 0.5

_ROOM_S = 10.0
"""In which the cluster must have found room for workers beyond those that were reserved."""


class RolloutsLostError(BraidError):
    """Workers that sample were lost and are not replaced any more."""

    def __init__(self, message: str, code: ExitCode) -> None:
        super().__init__(message)
        self.exit_code = code


@dataclass(frozen=True)
class Began:
    """Ranks were started."""

    generation: int
    first: Any
    """Actor of rank 0."""


@dataclass(frozen=True)
class Lost:
    """They failed, or ended."""


@dataclass(frozen=True, kw_only=True)
class Given:
    """Ranks gave up places, or did not take them."""

    bundles: tuple[int, ...]
    refused: str
    """Why they did not; empty where it is as was wished."""


News: TypeAlias = Began | Lost | Given
"""What the main thread tells of the ranks that train."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the thread works with; it makes those that belong to one thread itself."""

    folder: RunFolder
    rollouts: Rollouts
    seating: Seating
    max_restarts: int
    supervised_steps: int
    store: StoreKeeper
    """Where channels for weights meet."""

    open_rewards: Callable[[], RewardPool] | None
    """None where environments score."""

    conductor: Callable[[tuple[str, int], Mapping[str, Any] | None], Conductor]
    """From the store's place and the state of an earlier driver."""


class Turns:
    """What the thread does, again and again."""

    def __init__(
        self,
        parts: Parts,
        conductor: Conductor,
        rewards: RewardPool | None,
        warnings: deque[str],
        wishes: deque[Wish],
        clock: Callable[[], float],
    ) -> None:
        self._parts = parts
        self._conductor = conductor
        self._rewards = rewards
        self._warnings = warnings
        self._wishes = wishes
        self._clock = clock
        self._state = StateFile(parts.folder)
        self._trainer: Line[ToTrainer, FromTrainer] | None = None
        self._losses: list[Loss] = []
        self._answered = 0
        self._ticked_s = clock()
        self._asked_s: float | None = None

    def hear(self, news: Sequence[News]) -> None:
        """Take in what became of the ranks that train."""
        for one in news:
            if isinstance(one, Began):
                self._trainer = Line(one.first, one.generation)
            elif isinstance(one, Given):
                self._take_places(one)
            else:
                self._trainer = None
                self._act(self._conductor.trainers_lost(self._clock()))

    def turn(self) -> None:
        """Wait for something to happen, and do what follows."""
        refs = self._parts.rollouts.refs + self._parts.store.refs
        if self._trainer is not None:
            refs += self._trainer.refs
        done = self._await(refs)
        self._look_at_trainer(done)
        self._look_at_rollouts(done)
        self._look_at_store(done)
        if self._rewards is not None and self._rewards.under_way:
            results = self._rewards.poll(_REWARDING_TURN_S)
            if results:
                self._act(self._conductor.on_rewards(results, self._clock()))
        now_s = self._clock()
        if now_s - self._ticked_s >= _TICK_S:
            self._ticked_s = now_s
            self._act(self._conductor.tick(now_s))
            self._give_up_on_room(now_s)

    def end(self) -> None:
        """Keep what was answered since the last step's batch left."""
        if self._conductor.status()["version"] is not None:
            self._state.write(self._conductor)

    def _await(self, refs: "list[ray.ObjectRef[Any]]") -> "set[ray.ObjectRef[Any]]":
        rewarding = self._rewards is not None and self._rewards.under_way
        limit_s = _REWARDING_TURN_S if rewarding else _TURN_S
        if not refs:
            time.sleep(limit_s)
            return set()
        first, rest = ray.wait(refs, num_returns=1, timeout=limit_s)
        if not first or not rest:
            return set(first)
        more, _ = ray.wait(rest, num_returns=len(rest), timeout=0)
        return {*first, *more}

    def _look_at_trainer(self, done: "set[ray.ObjectRef[Any]]") -> None:
        if self._trainer is None:
            return
        try:
            messages = self._trainer.take(done)
        except RayError:
            # The main thread finds out what happened, and says so when others have its rank.
            self._trainer = None
            return
        for message in messages:
            self._act(self._conductor.on_trainer(message, self._clock()))

    def _look_at_rollouts(self, done: "set[ray.ObjectRef[Any]]") -> None:
        happened = self._parts.rollouts.look(done)
        for name, messages in happened.messages:
            for message in messages:
                self._answered += isinstance(message, Answered)
                self._act(self._conductor.on_rollout(name, message, self._clock()))
        for lost in happened.lost:
            self._act(self._conductor.rollout_lost(lost.name, lost.reason, self._clock()))
            self._count(lost)
        for name in happened.up:
            self._tell_start(name)
            self._act(self._conductor.rollout_up(name, self._clock()))

    def _look_at_store(self, done: "set[ray.ObjectRef[Any]]") -> None:
        if not self._parts.store.lost(done):
            return
        self._warnings.append("the store of the channels for weights was lost; another is started")
        self._act(self._conductor.store_moved(self._parts.store.open(), self._clock()))

    def _tell_start(self, name: str) -> None:
        version = self._conductor.status()["version"]
        append_event(
            self._parts.folder.events,
            now_s=time.time(),
            kind="rollout_started",
            step=0 if version is None else self._parts.supervised_steps + version,
            worker=name,
            host=self._parts.rollouts.host_of(name),
            process=self._parts.rollouts.process_of(name),
        )

    def _count(self, lost: LostRollout) -> None:
        """Raises RolloutsLostError where it was one too many."""
        self._losses.append(
            Loss(
                name=lost.name,
                host=lost.host,
                reason=lost.reason,
                exit_code=lost.exit_code,
                answered=self._answered,
            )
        )
        why = refusal(self._losses, self._parts.max_restarts)
        if why:
            told = f"{why}\n{story(self._losses)}" if len(self._losses) > 1 else why
            raise RolloutsLostError(
                f"{told}\nsee logs/rollout-*.log in the run folder", exit_code_of(self._losses)
            )
        self._warnings.append(
            f"{lost.name} on {lost.host} was lost ({lost.reason}); another one takes its place"
        )

    def _act(self, actions: Actions) -> None:
        if actions.persist:
            self._state.write(self._conductor)
        for event in actions.events:
            append_event(self._parts.folder.events, now_s=time.time(), **event)
        if self._trainer is not None:
            self._trainer.send(*actions.to_trainer)
        for name, messages in actions.to_rollouts.items():
            self._parts.rollouts.send(name, messages)
        for request in actions.rewards:
            assert self._rewards is not None
            self._rewards.submit(request)
        if actions.split is not None:
            self._change(actions.split)
        told = {event.get("worker"): event.get("cause") for event in actions.events}
        for name in actions.replace:
            self._replace(name, str(told.get(name)))

    def _change(self, split: Split) -> None:
        """Begin to have this split: what sampling gives up is left before ranks are told of it."""
        self._asked_s = self._clock()
        moves = self._parts.seating.change(split)
        self._move(moves)
        if moves.ranks is not None:
            self._wishes.append(Wish(ranks=moves.ranks, bundles=moves.for_ranks))

    def _take_places(self, given: Given) -> None:
        """What ranks left is for sampling; where they refused, things are as before."""
        self._move(self._parts.seating.given(given.bundles, refused=bool(given.refused)))
        if given.refused:
            self._warnings.append(f"the split stays as it is: {given.refused}")
            self._act(self._conductor.split_refused(given.refused, self._clock()))

    def _give_up_on_room(self, now_s: float) -> None:
        if self._asked_s is None:
            return
        missing = len(self._parts.rollouts.without_place())
        if not missing:
            # There was room: whoever is lost from now on is replaced, and nothing is undone.
            self._asked_s = None
        elif now_s - self._asked_s > _ROOM_S:
            self._asked_s = None
            told = f"the cluster has no room for {missing} more that sample (rollout.spare_workers)"
            self._take_places(Given(bundles=(), refused=told))

    def _move(self, moves: Moves) -> None:
        left = [self._parts.rollouts.leave(seat) for seat in moves.leave]
        for seat in moves.fill:
            self._parts.rollouts.add(seat)
        for name in left:
            self._act(self._conductor.rollout_retired(name, self._clock()))

    def _replace(self, name: str, reason: str) -> None:
        """End a worker that the conductor counts as lost already."""
        host = self._parts.rollouts.host_of(name)
        self._parts.rollouts.dismiss(name)
        self._count(
            LostRollout(name=name, host=host, reason=reason, exit_code=ExitCode.INFRASTRUCTURE)
        )
