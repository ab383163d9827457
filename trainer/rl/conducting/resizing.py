"""Whether the split of places between training and sampling fits, and when it is changed. Pure.

Guarantees, each asserted in tests/trainer/rl/conducting/test_resizing.py:
- advice and changes come from a window of steps, at most one per window, and none while a change is
  under way or somebody is missing; the same advice is given once;
- a change is asked for only between splits that the layout and the places allow, where it should
  save a tenth of a step, can still be measured, and saves in the rest of the run more than the last
  change took;
- what was changed is measured, and told beside what was predicted;
- no split is chosen twice. One that made steps longer by a tenth is left for the one before, once;
- places that nobody has are taken only as far as they shorten the step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from trainer.rl.conducting.actions import Draft
from trainer.rl.conducting.split import Places, Split
from trainer.rl.conducting.window import STEPS, Measured, Window
from trainer.rl.config import RolloutConfig
from trainer.rl.sizing import RoleTime, Sizing, size_roles

_LEAST_GAIN = 0.1

WORTH_S = 5.0
"""Seconds that the first change must save in the rest of the run."""

_TRAINERS, _WORKERS = "trainers", "rollout workers"


@dataclass(frozen=True, kw_only=True)
class Moment:
    """After a step."""

    step: int
    """Its number, as the trainers count."""

    steps_left: int
    now_s: float


class Resizing:
    """Of one run."""

    def __init__(
        self,
        mode: Literal["off", "advise", "apply"],
        places: Places | None,
        rollout: RolloutConfig,
    ) -> None:
        """Without `places` nothing is changed; nor where workers share the places of ranks, as then
        the time that one side takes depends on the other."""
        self._mode, self._places, self._rollout = mode, places, rollout
        self._shared = rollout.colocated_workers > 0
        self._applies = mode == "apply" and places is not None and not self._shared
        self._told_shared = False
        self._window = Window()
        self._given: Split | None = None
        self._split = None if places is None else places.now
        self._target: Split | None = None
        self._asked: dict[str, Any] = {}
        self._been = {self._split}
        self._before: tuple[Split, float] | None = None
        self._worth_s = WORTH_S

    @property
    def workers(self) -> int:
        """As many as shall sample."""
        wanted = self._target or self._split
        own = self._rollout.workers if wanted is None else wanted.workers
        return own + self._rollout.colocated_workers

    def sampled(self, seconds: float) -> None:
        """A worker was busy for so long."""
        self._window.sampled(seconds)

    def committed(self, trained_s: float, present: Split, at: Moment, draft: Draft) -> None:
        """A step is done; `present` are there. Advise, or ask for a change, where it is time."""
        if self._mode == "off" or self._shared:
            self._tell_shared(at.step, draft)
            return
        self._window.step(trained_s, at.now_s)
        if self._target is not None:
            return
        if self._applies and present != self._split:
            self._window.begin()
            return
        measured = self._window.take(workers=present.workers)
        if measured is None:
            return
        harmed = self._tell_measured(measured, at.step, draft)
        if harmed is not None:
            self._undo(harmed, measured, at, draft)
        elif not self._change(measured, present, at, draft):
            self._advise(measured, present, at.step, draft)

    def look(self, present: Split, step: int, draft: Draft, now_s: float) -> None:
        """See whether what was asked for is there."""
        if self._target is None or present != self._target:
            return
        took_s = now_s - self._asked.pop("asked_s")
        draft.event("resized", step, **self._asked, seconds=took_s)
        self._worth_s = max(WORTH_S, took_s)
        self._split, self._target = present, None
        self._been.add(present)
        self._window.begin()

    def refused(self, cause: str, step: int, draft: Draft) -> None:
        """What was asked for cannot be had; the split stays as it is."""
        if self._target is None:
            return
        self._asked.pop("asked_s")
        draft.event("resize_refused", step, **{**self._asked, "cause": cause})
        self._been.add(self._target)
        self._target, self._before = None, None
        self._window.begin()

    def _tell_shared(self, step: int, draft: Draft) -> None:
        if self._mode != "apply" or self._told_shared:
            return
        self._told_shared = True
        cause = (
            f"the workers of rollout.colocated_workers={self._rollout.colocated_workers} share the "
            "places of ranks, where the time that one side takes depends on the other; give them "
            "places of their own (rollout.workers) for rl.resize: apply"
        )
        draft.event("resize_refused", step, cause=cause)

    def _tell_measured(
        self, measured: Measured, step: int, draft: Draft
    ) -> tuple[Split, float] | None:
        """What a change came to; the split before it and its time of a step, where that was
        better."""
        before, self._before = self._before, None
        if before is None:
            return None
        draft.event(
            "sizing_measured",
            step,
            trainers=self._asked["trainers"],
            workers=self._asked["workers"],
            step_s=measured.step_s,
            predicted_s=self._asked["step_s"],
            before_s=before[1],
        )
        return before if measured.step_s > before[1] * (1.0 + _LEAST_GAIN) else None

    def _undo(
        self, before: tuple[Split, float], measured: Measured, at: Moment, draft: Draft
    ) -> None:
        split, step_s = before
        if not self._is_worth(measured.step_s - step_s, at):
            return
        cause = f"a step took {step_s:.3g} s with {split}, and takes {measured.step_s:.3g} s now"
        self._ask(split, step_s, measured.step_s, cause, at, draft)

    def _change(self, measured: Measured, present: Split, at: Moment, draft: Draft) -> bool:
        """Ask for the best split that can be had; False where there is nothing to ask for."""
        if not self._applies or self._places is None:
            return False
        places, ranks = self._places, present.trainers
        found = _sized(
            measured,
            present,
            trainer_sizes=[n for n in places.trainer_sizes if n <= places.most_trainers],
            worker_sizes=range(1, places.most_workers + 1),
            places=places.total,
        )
        most = places.total - ranks + places.spare
        alone = _sized(
            measured,
            present,
            trainer_sizes=[ranks],
            worker_sizes=range(1, most + 1),
            places=ranks + most,
        )
        # Ranks that stay need not stop for it.
        if places.spare and alone.step_s <= found.step_s * (1.0 + _LEAST_GAIN):
            found = alone
        split = self._without_waste(measured, found)
        if not found.advised or split in self._been:
            return False
        if not self._is_worth(found.present_s - found.step_s, at):
            return False
        self._before = (present, measured.step_s)
        self._ask(split, found.step_s, found.present_s, found.sentence, at, draft)
        return True

    def _is_worth(self, saved_s: float, at: Moment) -> bool:
        return at.steps_left > STEPS and saved_s * at.steps_left >= self._worth_s

    def _ask(
        self,
        split: Split,
        step_s: float,
        present_s: float,
        cause: str,
        at: Moment,
        draft: Draft,
    ) -> None:
        assert self._split is not None
        draft.split = self._target = split
        self._asked = {
            "trainers": split.trainers,
            "workers": split.workers,
            "trainers_before": self._split.trainers,
            "workers_before": self._split.workers,
            "step_s": step_s,
            "present_s": present_s,
            "cause": cause,
            "asked_s": at.now_s,
        }

    def _without_waste(self, measured: Measured, found: Sizing) -> Split:
        """Of places that the run does not have yet, no more than the step's time needs."""
        assert self._places is not None
        split = Split(trainers=found.ranks[_TRAINERS], workers=found.ranks[_WORKERS])
        own = self._places.total - split.trainers
        enough = next(
            n for n in range(1, split.workers + 1) if measured.sampled_s / n <= found.step_s + 1e-12
        )
        return Split(trainers=split.trainers, workers=min(split.workers, max(own, enough)))

    def _advise(self, measured: Measured, present: Split, step: int, draft: Draft) -> None:
        total = present.trainers + present.workers
        sizes: Sequence[int] = range(1, total)
        if self._places is not None:
            sizes = [n for n in self._places.trainer_sizes if n < total]
        if not sizes:
            return
        found = _sized(
            measured, present, trainer_sizes=sizes, worker_sizes=range(1, total), places=total
        )
        split = Split(trainers=found.ranks[_TRAINERS], workers=found.ranks[_WORKERS])
        if not found.advised or split == self._given:
            return
        self._given = split
        draft.event(
            "sizing_advised",
            step,
            trainers=split.trainers,
            workers=split.workers,
            step_s=found.step_s,
            present_s=found.present_s,
            cause=found.sentence,
            **self._why_not(split),
        )

    def _why_not(self, split: Split) -> dict[str, str]:
        """Why a run that may change its split does not."""
        if self._mode != "apply":
            return {}
        if self._places is None:
            return {"not_applied": "nothing is known of the places of this run"}
        if split in self._been:
            return {"not_applied": "the run has had this split, and does not go back and forth"}
        if self._places.fixed:
            return {"not_applied": self._places.fixed}
        return {"not_applied": "the rest of the run would gain too little"}


def _sized(
    measured: Measured,
    present: Split,
    *,
    trainer_sizes: Sequence[int],
    worker_sizes: Sequence[int],
    places: int,
) -> Sizing:
    return size_roles(
        {
            _TRAINERS: RoleTime(
                ranks=present.trainers, busy_s=measured.trained_s, sizes=trainer_sizes
            ),
            _WORKERS: RoleTime(
                ranks=present.workers,
                busy_s=measured.sampled_s / present.workers,
                sizes=worker_sizes,
            ),
        },
        ranks=places,
        least_gain=_LEAST_GAIN,
    )
