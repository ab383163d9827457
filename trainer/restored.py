"""Where a resumed run stands, and what its folder is told of that."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comms.config import RankEnvironment
from parallel.layout import Layout
from trainer.checkpoint.loading import Loaded
from trainer.checkpoint.resume import drop_later_steps
from trainer.islands.share import BatchShare, Part
from trainer.numeric.jumps import Rollback, decode
from trainer.numeric.record import joined, write_rollbacks
from trainer.progress import Progress
from trainer.run_folder import RunFolder, append_event


@dataclass(frozen=True, kw_only=True)
class Restored:
    """Where a resumed run stands."""

    progress: Progress
    path: Path
    """The snapshot or checkpoint it goes on from."""

    on_disk: Path | None
    """The newest checkpoint of this run, read or not."""

    back: bool
    """Whether the user went back on purpose."""

    past_step: int = -1
    """The step that some island has done already, where they go on from different ones."""

    share: BatchShare | None = None
    """What of each batch this rank's island takes, where that was different before."""


def share_of(
    layout: Layout, rank: int, weights: tuple[float, ...], restored: Restored | None
) -> BatchShare:
    """What of each batch this rank's island takes, of islands of these weights."""
    if restored is not None and restored.share is not None:
        return restored.share
    return BatchShare(Part(layout.island_of(rank), weights))


def newest_on_disk(
    loaded: Loaded | None, candidates: Sequence[Path], folder: RunFolder
) -> Path | None:
    """The newest checkpoint of this run; `loaded` is what it goes on from, if that is known."""
    own = [path for path in candidates if path.parent == folder.checkpoints]
    if loaded is not None and loaded.place == "disk":
        return loaded.path if loaded.path in own else None
    return own[0] if own else None


def continue_numeric(
    progress: Progress,
    meta: Mapping[str, Any],
    rollbacks: tuple[Rollback, ...],
    folder: RunFolder,
    environment: RankEnvironment,
) -> None:
    """Go on with the history of the state that `meta` describes, and with all rollbacks of it and
    of the run."""
    record = meta.get("numeric")
    progress.restore_numeric(record)
    made = () if record is None else decode(record["rollbacks"])
    progress.rollbacks = joined(made, rollbacks)
    if environment.rank == 0 and (progress.rollbacks or folder.rollbacks.exists()):
        write_rollbacks(folder.rollbacks, progress.rollbacks)


def drop_lines(folder: RunFolder, environment: RankEnvironment, step: int) -> None:
    """Drop what the run's files say of later steps."""
    if environment.rank == 0:
        drop_later_steps(folder, step)


def note_islands(
    before: Sequence[int],
    now: Sequence[int],
    folder: RunFolder,
    environment: RankEnvironment,
    step: int,
    joined: Sequence[int] = (),
) -> None:
    """Tell where others go on than before."""
    if environment.rank == 0 and (tuple(before) != tuple(now) or joined):
        append_event(
            folder.events,
            now_s=time.time(),
            kind="islands_changed",
            step=step,
            before=max(1, len(before)),
            now=max(1, len(now)),
            islands=list(now),
            joined=list(joined),
        )


def note_resets(
    causes: Sequence[str], folder: RunFolder, environment: RankEnvironment, step: int
) -> None:
    """Tell what replicas had not sent and is lost."""
    for cause in causes:
        if environment.rank == 0:
            append_event(
                folder.events,
                now_s=time.time(),
                kind="compression_reset",
                step=step,
                cause=cause,
            )


def record_resumed(loaded: Loaded, folder: RunFolder, environment: RankEnvironment) -> None:
    """Tell what the run goes on from, and what was passed over."""
    if environment.rank != 0:
        return
    now_s = time.time()
    for path, reason in loaded.skipped:
        append_event(
            folder.events,
            now_s=now_s,
            kind="checkpoint_skipped",
            step=loaded.step,
            path=str(path),
            cause=reason,
        )
    append_event(
        folder.events,
        now_s=now_s,
        kind="resumed",
        step=loaded.step,
        path=str(loaded.path),
        place=loaded.place,
    )
