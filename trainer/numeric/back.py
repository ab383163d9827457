"""Take a running process back to an earlier state of its run; the data goes on.

Guarantees, asserted in tests/invariants/test_numeric.py:
- weights and optimizer are those of a state that is as old as was asked for, on all ranks;
- before training goes on, the run's folder says so, and states of what was undone are set aside.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch.distributed import ProcessGroup

from comms.config import RankEnvironment
from comms.groups import broadcast_bytes
from trainer.assembly import Assembly
from trainer.checkpoint.agreement import RanksFailed, agree
from trainer.checkpoint.filling import Source
from trainer.checkpoint.folder import list_complete, set_aside_later
from trainer.checkpoint.loading import Loaded, StepFolder, choose, load_chosen
from trainer.errors import NumericError, ResourceError
from trainer.keeping.config import KeepingConfig
from trainer.keeping.newest import in_order
from trainer.numeric.jumps import Rollback
from trainer.numeric.record import Admitted, joined, write_rollbacks
from trainer.progress import Progress
from trainer.run_folder import RunFolder
from trainer.saving import Saver
from trainer.snapshot_opening import find_own_snapshots
from trainer.state import tensors_to_fill


@dataclass(frozen=True, kw_only=True)
class WentBack:
    """What a rollback came to."""

    rollback: Rollback
    loaded: Loaded


@dataclass(frozen=True, kw_only=True)
class WayBack:
    """Of one rank. `group` is the one that checkpoints are written over."""

    keeping: KeepingConfig
    folder: RunFolder
    environment: RankEnvironment
    group: ProcessGroup
    assembly: Assembly
    saver: Saver
    progress: Progress
    rollback_steps: int

    def go(self) -> WentBack:
        """After the step that `progress` counts, whose update was not made. All ranks call it, when
        the last snapshot in memory is whole and before another one begins.

        Raises NumericError where no state is old enough, DataError where none can be read.
        """
        self.saver.settle()  # its thread has done with the group then
        step = self.progress.step
        sources = self._sources(max(0, step - self.rollback_steps))
        if not sources:
            raise NumericError(
                f"step {step}: no checkpoint is numeric.rollback_steps={self.rollback_steps} steps "
                "old; lower that, or raise checkpoint.keep_last"
            )
        loaded = self._load(sources)
        rollback = Rollback(from_step=step, to_step=loaded.step)
        self.progress.restore_numeric(loaded.meta.get("numeric"))
        self.progress.tokens = loaded.meta["tokens"]
        self.progress.updates = loaded.meta["updates"]
        self.progress.rollbacks = joined(self.progress.rollbacks, [rollback])
        try:
            agree(self.group, f"going back to step {loaded.step}", lambda: self._tell(loaded.step))
        except RanksFailed as failure:
            raise ResourceError(f"a rollback could not be written down: {failure}") from failure
        self.saver.returned(loaded.step, loaded.path if loaded.place == "disk" else None)
        return WentBack(rollback=rollback, loaded=loaded)

    def _sources(self, latest: int) -> list[Source]:
        """Own states of up to step `latest`, the one to try first in front."""
        found = find_own_snapshots(self.keeping, self.folder, self.environment, self.group)
        snapshots = [snapshot for snapshot in found if snapshot.step <= latest]
        payload = b""
        if self.environment.rank == 0:
            listed = list_complete(self.folder.checkpoints)
            payload = json.dumps([[step, str(path)] for step, path in listed]).encode()
        folders = json.loads(broadcast_bytes(payload, group=self.group))
        kept = [(step, Path(path)) for step, path in folders if step <= latest]
        order = in_order([snapshot.step for snapshot in snapshots], [step for step, _ in kept])
        sources: list[Source] = [
            snapshots[candidate.number]
            if candidate.kind == "memory"
            else StepFolder(kept[candidate.number][1])
            for candidate in order
        ]
        return [Admitted(source, self.progress.rollbacks) for source in sources]

    def _load(self, sources: Sequence[Source]) -> Loaded:
        assembly = self.assembly
        tensors = tensors_to_fill(assembly.weights, assembly.optimizer)
        chosen = choose(tensors, sources, self.group)
        loaded = load_chosen(tensors, chosen, self.group)
        assembly.weights.publish()
        assembly.optimizer.restored(tensors, loaded.meta["updates"])
        return loaded

    def _tell(self, to_step: int) -> None:
        if self.environment.rank == 0:
            write_rollbacks(self.folder.rollbacks, self.progress.rollbacks)
            set_aside_later(self.folder.checkpoints, to_step)
