"""The driver's thread that conducts a run by rewards: it passes messages and keeps the ledger safe.

What is decided is decided in `trainer.rl.conducting`, which is pure; here messages come in, and
what they lead to goes out. The snapshot of the ledger is on disk before a step's batch leaves.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias

import ray
from ray.exceptions import RayError

from cluster.rewards.pool import RewardPool
from cluster.rl.line import Line
from cluster.rl.losses import Loss, exit_code_of, refusal, story
from cluster.rl.rollouts import LostRollout, Rollouts
from cluster.rl.state import read_state, write_state
from cluster.view import RunView
from trainer.errors import BraidError, ExitCode, InfrastructureError
from trainer.rl.conducting.conductor import Actions, Conductor
from trainer.rl.messages import Answered, FromTrainer, ToTrainer
from trainer.run_folder import RunFolder, append_event

_TURN_S = 0.25
"""Longest time between two looks at everything."""

_REWARDING_TURN_S = 0.01
"""The same while rewards are under way, whose processes are no actors."""

_CLOSE_S = 10.0


class RolloutsLostError(BraidError):
    """Workers that sample were lost and are not replaced any more."""

    def __init__(self, message: str, code: ExitCode) -> None:
        super().__init__(message)
        self.exit_code = code


@dataclass(frozen=True)
class _Began:
    generation: int
    first: Any
    """Actor of rank 0."""


@dataclass(frozen=True)
class _Lost:
    pass


_News: TypeAlias = _Began | _Lost
"""What the main thread tells of the ranks that train."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the thread works with; it makes those that belong to one thread itself."""

    folder: RunFolder
    rollouts: Rollouts
    max_restarts: int
    open_store: Callable[[], tuple[str, int]]
    """Host and port of the store of channels, once it serves."""

    open_rewards: Callable[[], RewardPool] | None
    """None where environments score."""

    conductor: Callable[[tuple[str, int], Mapping[str, Any] | None], Conductor]
    """From the store's place and the state of an earlier driver."""


@dataclass
class Conducting:
    """Starts with `open`; the main thread calls all public methods."""

    parts: Parts
    clock: Callable[[], float] = time.monotonic

    _news: SimpleQueue[_News] = field(default_factory=SimpleQueue, init=False)
    _warnings: deque[str] = field(default_factory=deque, init=False)
    _closing: threading.Event = field(default_factory=threading.Event, init=False)
    _thread: ThreadPoolExecutor = field(init=False)
    _work: Future[None] | None = field(default=None, init=False)
    _current: _Began | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="conducting")

    def open(self) -> None:
        """Start the thread, and with it the workers that sample."""
        self._work = self._thread.submit(self._conduct)

    def began(self, generation: int, first: Any) -> None:
        """Ranks were started; `first` is the actor of rank 0."""
        self._current = _Began(generation, first)
        self._news.put(self._current)

    def lost(self) -> None:
        """They failed. Rank 0 is told that no messages will come, so that it does not wait."""
        if self._current is not None:
            self._current.first.hang_up.remote(self._current.generation)
            self._current = None
        self._news.put(_Lost())

    def check(self, view: RunView) -> None:
        """Show what there is to say. Raises what ended the thread."""
        while self._warnings:
            view.warning(self._warnings.popleft())
        if self._work is None or not self._work.done():
            return
        error = self._work.exception()
        if isinstance(error, BraidError | RayError | OSError):
            raise error
        if error is not None:
            raise InfrastructureError(
                f"the thread that conducts rollouts failed: {type(error).__name__}: {error}"
            ) from error

    def close(self) -> None:
        """End the thread and all that it started. May be called in any state."""
        self._closing.set()
        if self._work is not None:
            # It may be waiting for a store or a function that never comes up.
            threading.Event().wait(0) if self._work.done() else self._await_end()
        self._thread.shutdown(wait=False, cancel_futures=True)
        self.parts.rollouts.close()

    def _await_end(self) -> None:
        assert self._work is not None
        try:
            self._work.exception(timeout=_CLOSE_S)
        except TimeoutError:
            return

    def _conduct(self) -> None:
        with ExitStack() as stack:
            rewards = None
            if self.parts.open_rewards is not None:
                rewards = stack.enter_context(closing(self.parts.open_rewards()))
            state = read_state(self.parts.folder)
            conductor = self.parts.conductor(self.parts.open_store(), state)
            turns = _Turns(self.parts, conductor, rewards, self._warnings, self.clock)
            while not self._closing.is_set():
                turns.hear(self._taken_news())
                turns.turn()
            turns.end()

    def _taken_news(self) -> list[_News]:
        found: list[_News] = []
        while True:
            try:
                found.append(self._news.get_nowait())
            except Empty:
                return found


class _Turns:
    """What the thread does, again and again."""

    def __init__(
        self,
        parts: Parts,
        conductor: Conductor,
        rewards: RewardPool | None,
        warnings: deque[str],
        clock: Callable[[], float],
    ) -> None:
        self._parts = parts
        self._conductor = conductor
        self._rewards = rewards
        self._warnings = warnings
        self._clock = clock
        self._trainer: Line[ToTrainer, FromTrainer] | None = None
        self._losses: list[Loss] = []
        self._answered = 0
        self._step = 0

    def hear(self, news: Sequence[_News]) -> None:
        """Take in what became of the ranks that train."""
        for one in news:
            if isinstance(one, _Began):
                self._trainer = Line(one.first, one.generation)
            else:
                self._trainer = None
                self._act(self._conductor.trainers_lost(self._clock()))

    def turn(self) -> None:
        """Wait for something to happen, and do what follows."""
        refs = self._parts.rollouts.refs
        if self._trainer is not None:
            refs += self._trainer.refs
        done = self._await(refs)
        self._look_at_trainer(done)
        self._look_at_rollouts(done)
        if self._rewards is not None and self._rewards.under_way:
            results = self._rewards.poll(_REWARDING_TURN_S)
            if results:
                self._act(self._conductor.on_rewards(results, self._clock()))
        self._act(self._conductor.tick(self._clock()))

    def end(self) -> None:
        """Keep what was answered since the last step's batch left."""
        write_state(self._parts.folder, self._conductor.snapshot())

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
            self._lose(lost)
        for name in happened.up:
            self._act(self._conductor.rollout_up(name, self._clock()))

    def _lose(self, lost: LostRollout) -> None:
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
        self._act(self._conductor.rollout_lost(lost.name, lost.reason, self._clock()))
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
            write_state(self._parts.folder, self._conductor.snapshot())
        for event in actions.events:
            append_event(self._parts.folder.events, now_s=time.time(), **event)
        if self._trainer is not None:
            self._trainer.send(*actions.to_trainer)
        for name, messages in actions.to_rollouts.items():
            self._parts.rollouts.send(name, messages)
        for request in actions.rewards:
            assert self._rewards is not None
            self._rewards.submit(request)
        for name in actions.replace:
            host = self._parts.rollouts.host_of(name)
            self._parts.rollouts.dismiss(name)
            self._lose(
                LostRollout(
                    name=name,
                    host=host,
                    reason="it did not take new weights",
                    exit_code=ExitCode.INFRASTRUCTURE,
                )
            )
