"""When snapshots are taken, and what becomes of them at the end."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from comms.config import RankEnvironment
from trainer.assembly import Assembly
from trainer.checkpoint.share import State, local_part
from trainer.islands.exchange import Islands
from trainer.keeping.folder import clean
from trainer.keeping.snapshots import Snapshots
from trainer.run_folder import RunFolder, append_event
from trainer.state import copied_tensors, live_tensors
from trainer.unsent import Unsent

Describe = Callable[[], dict[str, Any]]
"""What the run is now, as JSON; sends nothing."""


class MemorySaver:
    """Takes a snapshot every few steps. All ranks call each method alike, on one thread."""

    def __init__(
        self,
        snapshots: Snapshots | None,
        *,
        interval_steps: int,
        folder: Path,
        run: RunFolder,
        assembly: Assembly,
        islands: Islands | None,
        unsent: Unsent,
        describe_run: Describe,
        environment: RankEnvironment,
    ) -> None:
        """`snapshots` is None where there are none; then nothing is done."""
        self._snapshots = snapshots
        self._interval_steps = interval_steps
        self._folder = folder
        self._run = run
        self._assembly = assembly
        self._islands = islands
        self._unsent = unsent
        self._describe_run = describe_run
        self._environment = environment
        self._live: State = {}

    def settle(self) -> float:
        """Wait until the last snapshot is whole; seconds waited. Called after the last backward of
        a step and before the vote: a step that is voted on has its predecessor in memory."""
        return 0.0 if self._snapshots is None else self._snapshots.settle()

    @property
    def on(self) -> bool:
        """Whether snapshots are taken."""
        return self._snapshots is not None and self._snapshots.failure is None

    def will_keep(self, step: int) -> bool:
        """Whether `save_if_due` will take one of this step."""
        return self.on and step % self._interval_steps == 0

    def save_if_due(self, step: int) -> None:
        """Begin a snapshot of what `step` left; called when nothing will change it before the next
        step's update."""
        snapshots = self._snapshots
        if snapshots is None or step % self._interval_steps:
            return
        if snapshots.failure is not None:
            self._give_up(step, snapshots)
            return
        if snapshots.taken == 1 and self._first_of_its_share():
            # The vote since then says that the first one is whole on every rank.
            snapshots.remove_older()
        optimizer = self._assembly.optimizer
        outer = {} if self._islands is None else self._islands.kept_tensors()
        snapshots.capture(
            step,
            {**self._live_parts(), **outer},
            self._describe_run(),
            late=lambda: copied_tensors(optimizer),
            loose=self._unsent.loose(),
        )

    def _live_parts(self) -> State:
        """This rank's parts of what it computes with, which changes in place. Looked up once: the
        names of a large model take longer than beginning its snapshot."""
        if not self._live:
            live = live_tensors(self._assembly.weights, self._assembly.optimizer)
            self._live = {name: local_part(tensor) for name, tensor in live.items()}
        return self._live

    def _first_of_its_share(self) -> bool:
        """Whether this is the first rank of its run, or island, on its host."""
        of_island = self._islands is not None and (
            self._environment.rank % self._assembly.layout.island_ranks == 0
        )
        return of_island or self._environment.local_rank == 0

    def finish(self) -> None:
        """Free this host's memory: called when the last checkpoint is on disk."""
        if self._environment.rank == 0:
            clean(self._run.rescued)
        if self._environment.local_rank == 0:
            clean(self._folder)

    def close(self) -> None:
        """End the thread. What is in memory stays, for the next start."""
        if self._snapshots is not None:
            self._snapshots.close()

    def _give_up(self, step: int, snapshots: Snapshots) -> None:
        append_event(
            self._run.events,
            now_s=time.time(),
            kind="snapshots_off",
            step=step,
            rank=self._environment.rank,
            host=self._environment.host,
            cause=snapshots.failure,
        )
        snapshots.close()
        self._snapshots = None
