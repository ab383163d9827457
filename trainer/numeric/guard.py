"""Judges every step before its update, and carries out what was decided."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from comms.config import RankEnvironment
from trainer.data.sequence import PackedSequence
from trainer.errors import NumericError
from trainer.numeric.back import WayBack
from trainer.numeric.config import NumericConfig
from trainer.numeric.jumps import steps_left, told
from trainer.numeric.planted import Planted
from trainer.numeric.policy import Decision, Limits, Observation, decide
from trainer.numeric.watch import GradientWatch
from trainer.progress import Progress
from trainer.run_folder import append_event
from trainer.vote import Verdict

_KINDS = {"nan": "numeric_fault", "spike": "loss_spike"}


@dataclass(frozen=True, kw_only=True)
class NumericGuard:
    """Of one rank. All ranks of an island call each method alike."""

    config: NumericConfig
    limits: Limits
    progress: Progress
    environment: RankEnvironment
    first_rank: int
    """Of this rank's island; it tells what nobody else is to tell."""

    island: int | None
    """None where there is one."""

    events: Path
    planted: Planted
    back: WayBack | None
    """None where nothing leads to a rollback."""

    watch: GradientWatch = field(default_factory=GradientWatch)

    def steps_left(self, last: int) -> Iterator[int]:
        """Steps of the run up to `last` that are to be trained on. A rollback changes nothing of
        it: the data goes on."""
        return steps_left(
            self.progress.step,
            last,
            rollbacks=self.progress.rollbacks,
            skipped=self.config.skip_steps,
        )

    def judge(self, verdict: Verdict, targets: int) -> Decision:
        """What becomes of a step with these sums over `targets` tokens. Called once per step, since
        the step becomes part of the history."""
        decision, self.progress.history = decide(
            self.config,
            self.limits,
            self.progress.history,
            Observation(
                loss=verdict.loss_sum / targets,
                grad_norm=verdict.grad_norm,
                finite=verdict.finite,
                cause=_cause(verdict),
            ),
            skipped_in_row=self.progress.skipped_in_row,
            rollbacks=len(self.progress.rollbacks),
        )
        return decision

    def act(
        self, decision: Decision, verdict: Verdict, sequences: Sequence[PackedSequence]
    ) -> bool:
        """Tell what was found in the step that `progress` counts, and go back where that was
        decided; whether it was. Raises NumericError where the run ends."""
        if decision.fault == "none":
            return False
        self._tell(decision, verdict, sequences)
        if decision.action == "stop":
            raise NumericError(f"step {self.progress.step}: {decision.cause}, {decision.why}")
        if decision.action == "rollback":
            self._go_back(decision)
        return decision.action == "rollback"

    def _tell(
        self, decision: Decision, verdict: Verdict, sequences: Sequence[PackedSequence]
    ) -> None:
        bad = verdict.bad_ranks or verdict.bad_gradients
        if self.environment.rank != min(bad, default=self.first_rank):
            return
        where: dict[str, Any] = {} if self.island is None else {"island": self.island}
        if bad:
            where |= {"rank": self.environment.rank, "host": self.environment.host}
        if decision.action != "train":
            where |= {"documents": documents_of(sequences)}
        append_event(
            self.events,
            now_s=time.time(),
            kind=_KINDS[decision.fault],
            step=self.progress.step,
            phase="vote",
            cause=decision.cause,
            action=decision.action,
            **where,
        )

    def _go_back(self, decision: Decision) -> None:
        assert self.back is not None, "nothing leads to a rollback"
        went = self.back.go()
        if self.environment.rank != self.first_rank:
            return
        rollback = went.rollback
        append_event(
            self.events,
            now_s=time.time(),
            kind="rolled_back",
            step=rollback.from_step,
            cause=decision.cause,
            **told(rollback),
            lost_steps=rollback.from_step - rollback.to_step,
            not_trained=[rollback.to_step + 1, rollback.from_step],
            trained_again=[],
            path=str(went.loaded.path),
            place=went.loaded.place,
            rollbacks=len(self.progress.rollbacks),
            max_rollbacks=self.limits.rollbacks,
        )


def documents_of(sequences: Sequence[PackedSequence]) -> dict[str, str]:
    """Which documents of which block (data.block_bytes) a batch has something of, as `0-3,7`."""
    pairs = sorted({(part.block, part.document) for row in sequences for part in row.segments})
    return {
        str(block): ",".join(_ranges([document for _, document in of_block]))
        for block, of_block in groupby(pairs, key=lambda pair: pair[0])
    }


def _ranges(ascending: Sequence[int]) -> list[str]:
    found: list[list[int]] = []
    for number in ascending:
        if found and found[-1][1] == number - 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return [str(first) if first == last else f"{first}-{last}" for first, last in found]


def _cause(verdict: Verdict) -> str:
    if verdict.bad_ranks:
        return f"the loss is not finite on ranks {list(verdict.bad_ranks)}"
    if verdict.bad_gradients:
        return f"the gradient is not finite on ranks {list(verdict.bad_gradients)}"
    return "the summed gradient is not finite"
