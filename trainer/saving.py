"""When checkpoints are written, and what happens when one cannot be."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from trainer.checkpoint.checkpointer import Checkpointer, SaveOutcome
from trainer.checkpoint.config import CheckpointConfig
from trainer.errors import ResourceError
from trainer.run_folder import append_event

_MAX_FAILURES_IN_ROW = 3
"""A full disk may be emptied; three failed saves in a row say that nobody does."""

Snapshot = Callable[[], tuple[dict[str, Tensor], dict[str, Any]]]
"""Tensors and description of the run as it is now. All ranks must call it together."""


class Saver:
    """Saves by steps, by time, at step 0 and at the end. All ranks call each method alike."""

    def __init__(
        self,
        checkpointer: Checkpointer,
        config: CheckpointConfig,
        *,
        snapshot: Snapshot,
        events: Path | None,
    ) -> None:
        self._checkpointer = checkpointer
        self._interval_steps = config.interval_steps
        self._interval_s = config.interval_s
        self._rehearse = config.rehearse
        self._snapshot = snapshot
        self._events = events
        self._saved_step = self._past_step = -1
        self._saved_at_s = time.monotonic()
        self._failures_in_row = 0
        self._newest: Path | None = None

    @property
    def newest(self) -> Path | None:
        """The newest checkpoint this process saw completed."""
        return self._newest

    def due_by_time(self) -> bool:
        """Whether this rank's clock asks for a checkpoint; the vote makes ranks agree."""
        return 0 < self._interval_s <= time.monotonic() - self._saved_at_s

    def is_due(self, step: int, *, by_time: bool) -> bool:
        """Whether `save_if_due` will save."""
        due = by_time or (self._interval_steps > 0 and step % self._interval_steps == 0)
        return due and step > self._past_step

    def rehearse(self, step: int) -> None:
        """Save before the first step and wait: a save that fails should cost a minute.

        Raises ResourceError where it cannot be written.
        """
        if self._rehearse and step > self._past_step:
            self._begin(step)
            self._settle(self._checkpointer.wait(), fatal=True)

    def resumed(self, step: int, path: Path) -> None:
        """Note that `step` is already on disk."""
        self._saved_step = step
        self._newest = path

    def found(self, path: Path) -> None:
        """Note that `path` is a complete checkpoint, of which no more is known."""
        self._newest = path

    def past(self, step: int) -> None:
        """Note that other islands are at `step` already: nobody saves up to there."""
        self._past_step = step

    def returned(self, step: int, path: Path | None) -> None:
        """Note that the run went back to `step`, which is on disk at `path` or not at all, and that
        no later checkpoint counts."""
        self._saved_step = -1 if path is None else step
        self._newest = path

    def settle(self) -> None:
        """Wait until the save under way has ended."""
        self._settle(self._checkpointer.wait(), fatal=False)

    def save_if_due(self, step: int, *, by_time: bool) -> None:
        """Called after every step with what the vote said about time."""
        self._settle(self._checkpointer.poll(), fatal=False)
        if self.is_due(step, by_time=by_time):
            self._begin(step)

    def wait(self) -> None:
        """Wait until all saves under way are on disk, or failed."""
        self._settle(self._checkpointer.wait(), fatal=False)

    def finish(self, step: int) -> Path | None:
        """Save the end of the run and wait until all saves are on disk.

        Raises ResourceError where the last one cannot be written.
        """
        self._settle(self._checkpointer.wait(), fatal=False)
        if step != self._saved_step:
            self._begin(step)
        self._settle(self._checkpointer.wait(), fatal=True)
        return self._newest

    def close(self) -> None:
        """End the background thread."""
        self._checkpointer.close()

    def _begin(self, step: int) -> None:
        tensors, description = self._snapshot()
        self._checkpointer.save(step, tensors, description)
        self._saved_step = step
        self._saved_at_s = time.monotonic()

    def _settle(self, outcomes: list[SaveOutcome], *, fatal: bool) -> None:
        for outcome in outcomes:
            self._record(outcome)
            if outcome.error is None:
                self._newest = outcome.path
                self._failures_in_row = 0
                continue
            self._failures_in_row += 1
            if outcome.step == self._saved_step:
                self._saved_step = -1
            if fatal or self._failures_in_row >= _MAX_FAILURES_IN_ROW:
                raise ResourceError(
                    f"the checkpoint of step {outcome.step} could not be written: "
                    f"{outcome.error}. The newest complete one is {self._newest}; make room and "
                    "run the same command again to go on from it."
                )

    def _record(self, outcome: SaveOutcome) -> None:
        if self._events is None:
            return
        if outcome.error is None:
            append_event(
                self._events,
                now_s=time.time(),
                kind="checkpoint_saved",
                step=outcome.step,
                path=str(outcome.path),
                seconds=outcome.seconds,
                bytes=outcome.bytes,
            )
        else:
            append_event(
                self._events,
                now_s=time.time(),
                kind="checkpoint_failed",
                step=outcome.step,
                cause=outcome.error,
            )
