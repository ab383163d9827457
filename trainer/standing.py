"""Where a run goes on from, and what keeps where it is."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist

from comms.config import RankEnvironment
from comms.groups import side_group
from trainer.assembly import Assembly
from trainer.checkpoint.checkpointer import Checkpointer
from trainer.checkpoint.config import CheckpointConfig
from trainer.config import JobConfig
from trainer.data.corpus import Corpus
from trainer.describing import describer_of, snapshot_of
from trainer.islands.exchange import Islands
from trainer.memory_saver import Describe, MemorySaver
from trainer.numeric.guard import NumericGuard
from trainer.numeric.jumps import Rollback
from trainer.numeric.opening import open_numeric
from trainer.numeric.record import agreed_rollbacks
from trainer.planner.batch import BatchArithmetic
from trainer.progress import Progress
from trainer.restored import Restored
from trainer.resume import restore
from trainer.run_folder import RunFolder
from trainer.saving import Saver, Snapshot
from trainer.snapshot_opening import find_own_snapshots, open_memory_saver


@dataclass(frozen=True, kw_only=True)
class State:
    """Where a run stands, and what keeps it."""

    restored: Restored | None
    """None at the start of a run."""

    progress: Progress
    memory: MemorySaver
    saver: Saver
    numeric: NumericGuard


def open_state(
    config: JobConfig,
    folder: RunFolder,
    environment: RankEnvironment,
    assembly: Assembly,
    corpus: Corpus,
    arithmetic: BatchArithmetic,
    islands: Islands | None,
) -> State:
    """Load what the run goes on from, and open what keeps it. All ranks call it."""
    cursor = data_cursor(config, corpus, arithmetic)
    group = side_group()
    rollbacks = agreed_rollbacks(folder, environment, group)
    restored = go_on(config, folder, environment, group, assembly, cursor, islands, rollbacks)
    progress = Progress(rollbacks=rollbacks) if restored is None else restored.progress
    describe_run = describer_of(assembly, environment, progress, cursor)
    memory, saver = open_savers(
        config, folder, environment, group, assembly, islands, restored, describe_run
    )
    numeric = open_numeric(config, folder, environment, group, assembly, saver, progress, islands)
    return State(restored=restored, progress=progress, memory=memory, saver=saver, numeric=numeric)


def go_on(
    config: JobConfig,
    folder: RunFolder,
    environment: RankEnvironment,
    group: dist.ProcessGroup,
    assembly: Assembly,
    cursor: dict[str, Any],
    islands: Islands | None,
    rollbacks: tuple[Rollback, ...],
) -> Restored | None:
    """From the newest state that the recipe allows; None starts afresh."""
    return restore(
        config.run.resume,
        folder=folder,
        environment=environment,
        group=group,
        assembly=assembly,
        cursor=cursor,
        islands=islands,
        find_snapshots=partial(find_own_snapshots, config.keep, folder, environment, group),
        rollbacks=rollbacks,
    )


def data_cursor(config: JobConfig, corpus: Corpus, arithmetic: BatchArithmetic) -> dict[str, Any]:
    """What, together with the step, says which tokens come next."""
    return {
        "fingerprint": corpus.fingerprint,
        "seed": config.run.seed,
        "seq_len": config.data.seq_len,
        "sequences_per_step": arithmetic.sequences_per_step,
    }


def open_savers(
    config: JobConfig,
    folder: RunFolder,
    environment: RankEnvironment,
    group: dist.ProcessGroup,
    assembly: Assembly,
    islands: Islands | None,
    restored: Restored | None,
    describe_run: Describe,
) -> tuple[MemorySaver, Saver]:
    """What takes snapshots in memory, and what writes checkpoints."""
    # Before the saver uses the same group from a thread of its own.
    memory = open_memory_saver(
        config.keep,
        folder,
        environment,
        group,
        assembly=assembly,
        islands=islands,
        describe_run=describe_run,
        forget=restored is None or restored.back,
    )
    saver = open_saver(
        config.checkpoint,
        folder,
        group,
        snapshot=snapshot_of(assembly, environment, describe_run, islands),
        events=folder.events if environment.rank == 0 else None,
        restored=restored,
    )
    return memory, saver


def open_saver(
    config: CheckpointConfig,
    folder: RunFolder,
    group: dist.ProcessGroup,
    *,
    snapshot: Snapshot,
    events: Path | None,
    restored: Restored | None,
) -> Saver:
    """The writer of checkpoints, which knows what is on disk already."""
    checkpointer = Checkpointer(
        folder.checkpoints, keep_last=config.keep_last, group=group, blocking=config.blocking
    )
    saver = Saver(checkpointer, config, snapshot=snapshot, events=events)
    if restored is not None:
        saver.past(restored.past_step)
    if restored is not None and restored.on_disk is not None:
        if restored.on_disk == restored.path:
            saver.resumed(restored.progress.step, restored.path)
        else:
            saver.found(restored.on_disk)
    return saver
