"""Who does what in a run by rewards: messages in, actions out. Pure; time is an argument.

Guarantees, each asserted in tests/trainer/rl/conducting/test_conductor.py, most of them under
random schedules in which trainers, workers and the conductor itself are lost at any message:
- in the steps that count, each prompt is trained exactly once, in batches that are never too stale;
- with a staleness of zero nothing starts while a step is under way, and steps train the same
  prompts whatever finishes when;
- a group that has no rewards is never trained; where groups with equal rewards are left out, others
  take their places, up to a limit: then the step has fewer, says so, and the run goes on;
- what a worker says under a lease that ended changes nothing, and tokens of weights that it cannot
  have had end its membership;
- whoever makes a channel fail is replaced, and one opening at a time is asked for;
- the run ends: after the last step nothing is started, and where no prompts are left the steps that
  remain are empty.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.rl.conducting.actions import Actions, Draft
from trainer.rl.conducting.beginning import STATE_FORMAT
from trainer.rl.conducting.channels import Channels
from trainer.rl.conducting.crew import Crew
from trainer.rl.conducting.figures import Figures
from trainer.rl.conducting.prompts import Prompts
from trainer.rl.conducting.resizing import Moment, Resizing
from trainer.rl.conducting.split import Places, Split
from trainer.rl.config import RlConfig, RolloutConfig
from trainer.rl.ledger import StaleAnswerError
from trainer.rl.ledger_records import Record
from trainer.rl.messages import (
    Answered,
    Committed,
    FromRollout,
    FromTrainer,
    GiveUp,
    Published,
    PublishFailed,
    Pulse,
    TrainerReady,
    Under,
    Updated,
    UpdateFailed,
)
from trainer.rl.rewards.outcome import RewardResult


class Conductor:
    """The one owner of prompts and steps. One thread calls it, and carries out what it returns."""

    def __init__(
        self,
        rl: RlConfig,
        rollout: RolloutConfig,
        *,
        seed: int,
        last_version: int,
        store: tuple[str, int],
        task_size: int | None = None,
        state: Mapping[str, Any] | None = None,
        places: Places | None = None,
    ) -> None:
        """`last_version` is how many steps by rewards the run has; `task_size` how many prompts it
        may use, None for any number; `store` the host and port of the channels' store; `state` an
        earlier `snapshot`, once through JSON; `places` those among which it may be split."""
        self._rl, self._rollout, self._seed = rl, rollout, seed
        self._last_version, self._task_size, self._state = last_version, task_size, state
        self._prompts: Prompts | None = None
        self._trainers: int | None = None
        self._crew = Crew()
        self._channels = Channels(store, opened=0 if state is None else state.get("channels", 0))
        self._figures = Figures()
        self._resizing = Resizing(rl.resize, places, rollout)

    @property
    def done(self) -> bool:
        """Whether the last step is committed."""
        prompts = self._prompts
        return prompts is not None and prompts.ledger.committed >= self._last_version

    @property
    def records(self) -> dict[int, Record]:
        """Of prompts, as they are now; for `snapshot`."""
        return {} if self._prompts is None else self._prompts.ledger.records

    def snapshot(self, known: Mapping[int, Record] | None = None) -> dict[str, Any]:
        """JSON-able; for `state`. With `known`, what `records` was at an earlier one, only what has
        changed since, for `trainer.rl.conducting.beginning.merged_state`."""
        if self._prompts is None and self._state is not None:
            return dict(self._state)
        return {
            "format": STATE_FORMAT,
            "ledger": None if self._prompts is None else self._prompts.ledger.snapshot(known),
            "channels": self._channels.opened,
        }

    def status(self) -> dict[str, Any]:
        """The trainers' version, None before the first; prompts by state, workers' versions."""
        ledger = None if self._prompts is None else self._prompts.ledger
        return {
            "version": None if ledger is None else ledger.committed,
            "prompts": {} if ledger is None else ledger.counts(),
            "workers": self._crew.versions(),
        }

    def on_trainer(self, message: FromTrainer, now_s: float) -> Actions:
        """Take what the first rank that trains said."""
        draft = Draft()
        match message:
            case TrainerReady():
                self._begin(message, draft, now_s)
            case Committed() if self._trainers is not None:
                self._commit(message, draft, now_s)
            case Published() if self._trainers is not None:
                self._channels.published(message.prefix)
                self._figures.published(message)
            case PublishFailed() if self._trainers is not None:
                self._publish_failed(message, draft, now_s)
        return self._advance(draft, now_s)

    def on_rollout(self, worker: str, message: FromRollout, now_s: float) -> Actions:
        """Take what a worker said; what one says that is not up any more changes nothing."""
        draft = Draft()
        if worker not in self._crew:
            return draft.done()
        self._crew[worker].heard_s = now_s
        match message:
            case Under() | Answered():
                self._hear(worker, message, draft, now_s)
            case Updated() if self._channels.is_present(message.prefix):
                self._crew[worker].version = message.version
                self._figures.updated(message)
            case UpdateFailed() if self._channels.is_present(message.prefix):
                self._update_failed(worker, message, draft, now_s)
            case Pulse():
                self._note_pulse(worker, message, now_s)
        return self._advance(draft, now_s)

    def on_rewards(self, results: Sequence[RewardResult], now_s: float) -> Actions:
        """Take results of the requests in `Actions.rewards`, in any order."""
        draft = Draft()
        for result in results:
            if self._prompts is not None:
                self._prompts.result(result, draft)
        return self._advance(draft, now_s)

    def rollout_up(self, worker: str, now_s: float) -> Actions:
        """A worker runs, under a name that was never used before."""
        self._crew.add(worker, now_s)
        self._channels.joined(now_s, all_up=len(self._crew) >= self._resizing.workers)
        return self._advance(Draft(), now_s)

    def rollout_lost(self, worker: str, reason: str, now_s: float) -> Actions:
        """A worker is gone."""
        draft = Draft()
        if worker in self._crew:
            self._lose(worker, reason, draft, now_s)
        return self._advance(draft, now_s)

    def rollout_retired(self, worker: str, now_s: float) -> Actions:
        """A worker has given up its place for `Actions.split`."""
        if worker in self._crew:
            self._remove(worker, now_s)
        return self._advance(Draft(), now_s)

    def split_refused(self, cause: str, now_s: float) -> Actions:
        """What `Actions.split` asked for cannot be had, and things are as they were."""
        draft = Draft()
        self._resizing.refused(cause, self._step_number(), draft)
        return self._advance(draft, now_s)

    def trainers_lost(self, now_s: float) -> Actions:
        """The ranks that train are gone or recover; a TrainerReady comes once they are back."""
        self._trainers = None
        self._channels.lost()
        return self._advance(Draft(), now_s)

    def store_moved(self, store: tuple[str, int], now_s: float) -> Actions:
        """The channels' store was lost; another one is at this host and port."""
        draft = Draft()
        draft.event("channel_store_lost", self._step_number())
        self._channels.moved(store, now_s)
        return self._advance(draft, now_s)

    def tick(self, now_s: float) -> Actions:
        """Some time has passed; call it every second or so."""
        draft = Draft()
        for worker in self._crew.silent(now_s, self._rl.lease_s):
            self._dismiss(worker, f"it has said nothing for {self._rl.lease_s:g} s", draft, now_s)
        if self._prompts is not None:
            self._crew.end(self._prompts.ledger.expire(now_s), draft)
        return self._advance(draft, now_s)

    def _begin(self, message: TrainerReady, draft: Draft, now_s: float) -> None:
        """Trainers are there: go on where they are, with weights from them for everybody."""
        self._trainers = message.trainers
        self._crew.begin_anew(draft)
        self._channels.ready(now_s)
        if self._prompts is None or not self._prompts.reaches(message.version):
            self._prompts = Prompts(
                self._rl,
                self._rollout,
                self._figures,
                seed=self._seed,
                last_version=self._last_version,
                task_size=self._task_size,
                state=self._state if self._prompts is None else self.snapshot(),
                version=message.version,
            )
        self._prompts.go_back(message.version, draft)

    def _commit(self, message: Committed, draft: Draft, now_s: float) -> None:
        assert self._prompts is not None
        self._prompts.commit(message)
        self._figures.committed(message)
        at = Moment(
            step=self._prompts.step_number(message.version),
            steps_left=self._last_version - self._prompts.ledger.committed,
            now_s=now_s,
        )
        self._resizing.committed(message.trained_s, self._present(), at, draft)

    def _hear(self, worker: str, message: Under | Answered, draft: Draft, now_s: float) -> None:
        if self._prompts is None:
            return
        try:
            if isinstance(message, Answered):
                self._crew[worker].leases.pop(message.lease_id, None)
                self._prompts.finish(message, draft)
            elif not self._prompts.report(message, now_s):
                draft.tell(worker, GiveUp(lease_ids=(message.lease_id,)))
        except StaleAnswerError as error:
            self._dismiss(worker, str(error), draft, now_s)

    def _note_pulse(self, worker: str, message: Pulse, now_s: float) -> None:
        if self._prompts is None:
            # Until the first step by rewards is next, nobody could have anything to do.
            return
        self._figures.pulse(worker, message)
        self._resizing.sampled(message.busy_s)
        for lease_id in self._crew[worker].leases:
            self._prompts.ledger.report(lease_id, None, now_s=now_s)

    def _publish_failed(self, message: PublishFailed, draft: Draft, now_s: float) -> None:
        if not self._channels.is_present(message.prefix):
            return
        draft.event(
            "publish_failed",
            self._step_number(),
            version=message.version,
            cause=message.reason,
            culprits=list(message.culprits),
        )
        self._channels.failed(message.prefix, now_s)
        for worker in [name for name in self._crew if name in message.culprits]:
            self._dismiss(worker, message.reason, draft, now_s)

    def _update_failed(
        self, worker: str, message: UpdateFailed, draft: Draft, now_s: float
    ) -> None:
        """The trainers tell who is at fault; where they tell nothing, a new channel is opened."""
        draft.event("update_failed", self._step_number(), worker=worker, cause=message.reason)
        self._channels.doubted(now_s)

    def _dismiss(self, worker: str, reason: str, draft: Draft, now_s: float) -> None:
        """Have a worker replaced."""
        draft.replace.append(worker)
        self._lose(worker, reason, draft, now_s)

    def _lose(self, worker: str, reason: str, draft: Draft, now_s: float) -> None:
        again = self._remove(worker, now_s)
        draft.event("rollout_lost", self._step_number(), worker=worker, cause=reason, prompts=again)

    def _remove(self, worker: str, now_s: float) -> int:
        """A worker is up no more; how many prompts go to others."""
        self._crew.remove(worker)
        self._channels.left(worker, now_s)
        return 0 if self._prompts is None else len(self._prompts.ledger.lose(worker))

    def _present(self) -> Split:
        assert self._trainers is not None
        return Split(trainers=self._trainers, workers=len(self._crew))

    def _step_number(self) -> int:
        """Of the step that is trained now, or next."""
        committed = 0 if self._prompts is None else self._prompts.ledger.committed
        return self._rl.supervised_steps + committed + 1

    def _advance(self, draft: Draft, now_s: float) -> Actions:
        """Do whatever can be done now."""
        if self._trainers is not None:
            self._resizing.look(self._present(), self._step_number(), draft, now_s)
        if self._trainers is not None and self._prompts is not None and not self.done:
            place = self._channels.open(self._trainers, tuple(self._crew), now_s)
            if place is not None:
                draft.open_channel(place)
            self._prompts.make_steps(draft, weights_version=self._crew.oldest_version, now_s=now_s)
        if self._prompts is not None:
            self._prompts.hand_out(self._crew, draft, now_s)
        return draft.done()
