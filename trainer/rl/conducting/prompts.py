"""From prompts to steps: leases, judgements and batches over the prompt ledger. Pure.

What it guarantees is said, and asserted, with the conductor, its only user.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.errors import DataError
from trainer.rl.conducting.actions import Draft
from trainer.rl.conducting.batches import Batches
from trainer.rl.conducting.beginning import begin_ledger
from trainer.rl.conducting.crew import Crew
from trainer.rl.conducting.figures import Figures
from trainer.rl.conducting.judging import Judged, Judging
from trainer.rl.config import RlConfig, RolloutConfig
from trainer.rl.groups import Learning, Use
from trainer.rl.ledger_records import Record
from trainer.rl.messages import Answer, Answered, Committed, TrainOn, Under
from trainer.rl.rewards.outcome import RewardRequest, RewardResult
from trainer.rl.staleness import StalenessBound, UnderWay

_AHEAD_STEPS = 2
"""Steps that trainers have at a time: one that they train, and the next one to prepare."""

_DROPS_PER_PROMPT = 4
"""A step that has left out as many times its prompts takes what there is."""

_ANSWERS_KEPT_STEPS = 2
"""Steps whose answers are still there where training goes back."""


class Prompts:
    """The prompts of one run, from the version on at which its trainers were first ready."""

    def __init__(
        self,
        rl: RlConfig,
        rollout: RolloutConfig,
        figures: Figures,
        *,
        seed: int,
        last_version: int,
        task_size: int | None,
        state: Mapping[str, Any] | None,
        version: int,
    ) -> None:
        self._rl, self._rollout, self._figures = rl, rollout, figures
        self._last_version = last_version
        self._batches = Batches(rl, rollout, seed=seed)
        self._judging = Judging(rl)
        self._saved = version
        self._numbers: dict[int, tuple[int, ...]] = {}
        self.ledger, self._restarted = begin_ledger(
            state,
            version=version,
            prompts=task_size,
            prompts_per_step=rl.prompts_per_step,
            lease_s=rl.lease_s,
        )
        """And why it does not go on from `state`, if so."""

    def step_number(self, version: int) -> int:
        """The trainers' number of the step that trains `version`."""
        return self._rl.supervised_steps + version + 1

    def reaches(self, version: int) -> bool:
        """Whether trainers can go back to `version`."""
        return self.ledger.kept_from <= version <= self.ledger.next_step

    def go_back(self, version: int, draft: Draft) -> None:
        """Follow the trainers to `version`, an earlier one or the present one."""
        if self._restarted:
            step = self.step_number(version)
            draft.event("ledger_restarted", step, cause=self._restarted)
            self._restarted = ""
        self.ledger.rewind(version)
        self._numbers.clear()
        for record in self._judging.retain(self.ledger.finished()):
            self._judge(record, draft)

    def report(self, message: Under, now_s: float) -> bool:
        """Keep what a worker told; False where its lease is void. Raises StaleAnswerError."""
        return self.ledger.report(message.lease_id, message.kept, now_s=now_s)

    def finish(self, message: Answered, draft: Draft) -> bool:
        """Take finished answers; False where their lease is void. Raises StaleAnswerError."""
        record = self.ledger.finish(message.lease_id, message.kept)
        if record is None:
            return False
        self._judge(record, draft)
        return True

    def result(self, result: RewardResult, draft: Draft) -> None:
        """Take the rewards of a group."""
        judged = self._judging.result(result)
        if judged is not None:
            self._settle(judged, draft)

    def commit(self, message: Committed) -> None:
        """A step is trained."""
        ledger = self.ledger
        ledger.commit(message.version)
        ledger.lighten(ledger.committed - _ANSWERS_KEPT_STEPS)
        # A run that goes on from another's checkpoint may tell of a version of that one.
        saved = min(message.saved or 0, ledger.committed)
        if saved > self._saved:
            # One checkpoint more than the newest can be gone back to: that one may be damaged.
            ledger.forget(self._saved)
            self._saved = saved
        self._judging.forget(self._numbers.pop(message.version - _ANSWERS_KEPT_STEPS, ()))

    def make_steps(self, draft: Draft, *, weights_version: int | None, now_s: float) -> None:
        """Give the trainers the steps that are complete."""
        ledger = self.ledger
        while ledger.next_step < min(self._last_version, ledger.committed + _AHEAD_STEPS):
            chosen = self._chosen()
            if chosen is None:
                return
            groups = [self._judging[number] for number in chosen]
            batch = self._batches.of(groups)
            self._tell_what_is_learned(groups, bool(batch.samples), draft)
            step, _ = ledger.take(chosen)
            self._numbers[step] = chosen
            figures = self._figures.of_step(
                step, groups, weights_version=weights_version, now_s=now_s
            )
            draft.persist = True
            draft.to_trainer.append(
                TrainOn(version=step, samples=batch.samples, pairs=batch.pairs, figures=figures)
            )

    def hand_out(self, crew: Crew, draft: Draft, now_s: float) -> None:
        """Lease what may start, or go on, to the workers that have least to do."""
        if self.ledger.next_step >= self._last_version:
            return
        offered = set(crew.by_load())
        while offered:
            name = next(name for name in crew.by_load() if name in offered)
            if not self._lease(name, crew, draft, now_s):
                offered.remove(name)

    def _lease(self, name: str, crew: Crew, draft: Draft, now_s: float) -> bool:
        worker = crew[name]
        if worker.version is None or len(worker.leases) >= self._rollout.prompts_per_worker:
            return False
        room = self._room(worker.version, len(crew))
        lease = self.ledger.lease(name, version=worker.version, now_s=now_s, room=room)
        if lease is None:
            return False
        worker.leases[lease.lease_id] = lease.number
        draft.tell(name, Answer(number=lease.number, lease_id=lease.lease_id, kept=lease.kept))
        return True

    def _room(self, version: int, workers: int) -> int:
        """How many prompts may begin with these weights."""
        if self._gives_up():
            return 0
        under_way = self.ledger.under_way()
        bound = self._bound(max(1, workers) * self._rollout.prompts_per_worker)
        steps_left = self._last_version - self.ledger.next_step
        return min(
            steps_left * self._rl.prompts_per_step - len(under_way),
            bound.capacity(
                step=self.ledger.next_step,
                version=version,
                under_way=under_way,
                running=self.ledger.running,
            ),
        )

    def _chosen(self) -> tuple[int, ...] | None:
        """Prompts of the next step, possibly none; None where it must wait."""
        under_way = [
            UnderWay(one.number, one.version, one.number in self._judging)
            for one in self.ledger.under_way()
        ]
        ends = self.ledger.exhausted or self._gives_up()
        chosen = self._bound(1).choose(
            step=self.ledger.next_step, under_way=under_way, exhausted=ends
        )
        if chosen:
            return chosen
        return () if ends and not under_way else None

    def _gives_up(self) -> bool:
        """Whether too many groups were left out to sample more for this step."""
        limit = _DROPS_PER_PROMPT * self._rl.prompts_per_step
        return len(self._figures.left_out) >= limit

    def _bound(self, max_running: int) -> StalenessBound:
        return StalenessBound(
            max_staleness=self._rl.max_staleness,
            prompts_per_step=self._rl.prompts_per_step,
            max_running=max_running,
        )

    def _judge(self, record: Record, draft: Draft) -> None:
        found = self._judging.take(record)
        if isinstance(found, RewardRequest):
            draft.rewards.append(found)
        else:
            self._settle(found, draft)

    def _settle(self, judged: Judged, draft: Draft) -> None:
        """Leave a group out where nothing can be learned from it."""
        use = judged.verdict.use
        if use is Use.TRAINED or (use is Use.EQUAL and not self._rl.dynamic_sampling):
            return
        self.ledger.drop(judged.number, judged.verdict.reason)
        self._judging.forget([judged.number])
        self._figures.leave_out(judged)
        if use is Use.FAULT:
            step = self.step_number(self.ledger.next_step)
            draft.event("group_fault", step, prompt=judged.number, cause=judged.verdict.reason)

    def _tell_what_is_learned(
        self, groups: Sequence[Judged], has_samples: bool, draft: Draft
    ) -> None:
        step = self.step_number(self.ledger.next_step)
        learning = Learning(tuple(g.verdict for g in (*groups, *self._figures.left_out)))
        faults = learning.count(Use.FAULT)
        if self._gives_up() and faults == len(learning.verdicts):
            raise DataError(
                f"none of the {faults} groups for step {step} has rewards, the last: "
                f"{learning.verdicts[-1].reason}; correct the reward function or the task"
            )
        pairs = "" if has_samples else "the step learned nothing: no answer is better than another"
        if learning.message or pairs:
            draft.event("learned_nothing", step, cause=learning.message or pairs)
