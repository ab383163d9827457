"""Go on from a snapshot in memory or a checkpoint on disk, and prove that it is the same run."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from comms.config import RankEnvironment
from comms.groups import broadcast_bytes
from trainer.assembly import Assembly
from trainer.checkpoint.filling import Source
from trainer.checkpoint.folder import set_aside_later, step_of
from trainer.checkpoint.loading import Loaded, StepFolder, choose
from trainer.checkpoint.proof import Precision, check_same_loss
from trainer.checkpoint.resume import Resume, decide_resume, drop_later_steps
from trainer.islands.checkpoints import LoadedIsland, load_island
from trainer.islands.exchange import Islands
from trainer.keeping.newest import in_order
from trainer.keeping.source import SnapshotSource
from trainer.numeric.jumps import Rollback, decode
from trainer.numeric.record import Admitted, joined, write_rollbacks
from trainer.probe import probe_loss
from trainer.progress import Progress
from trainer.replica_state import restore_replicas
from trainer.run_folder import RunFolder, append_event
from trainer.state import arithmetic_of, require_same_data, tensors_to_fill


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


def restore(
    mode: str,
    *,
    folder: RunFolder,
    environment: RankEnvironment,
    group: dist.ProcessGroup,
    assembly: Assembly,
    cursor: dict[str, Any],
    islands: Islands | None,
    find_snapshots: Callable[[], list[SnapshotSource]],
    rollbacks: tuple[Rollback, ...],
) -> Restored | None:
    """Load the newest whole state that `run.resume` allows; None starts afresh.

    Islands go on where they were. Another number of them than the checkpoint's starts from the
    parameters that all had agreed on, which is noted as an event.

    All ranks call it. Snapshots in memory, which `find_snapshots` looks for, come before
    checkpoints of the same step; what one of the run's `rollbacks` left behind is passed over,
    unless the user goes back on purpose. Raises RecipeError where the state does not fit the
    recipe, DataError where none can be loaded, NumericError where the loss of the probe batch is
    another one than when the checkpoint was written.
    """
    decision = _agreed_decision(mode, folder, environment, group)
    newest = _takes_newest(mode, decision)
    snapshots = find_snapshots() if newest else []
    sources = _sources(snapshots, decision.candidates)
    if newest:
        sources = [Admitted(source, rollbacks) for source in sources]
    if not sources:
        _drop_lines(folder, environment, 0)
        return None
    tensors = tensors_to_fill(assembly.weights, assembly.optimizer)
    found = load_island(tensors, choose(tensors, sources, group), group, islands)
    loaded = found.loaded
    assembly.weights.publish()
    require_same_data(loaded.meta["data"], cursor)
    assembly.optimizer.restored(tensors, found.updates)
    del tensors
    if islands is not None and found.kind != "same":
        islands.start_from(loaded.step)
    _prove(found, assembly, environment)
    if environment.rank == 0 and mode not in ("auto", "must"):
        _return_to(loaded, folder)
    _drop_lines(folder, environment, loaded.step)
    _record(loaded, folder, environment)
    _note_islands(found, folder, environment, assembly)
    _continue_exchange(found, folder, environment, group, assembly)
    progress = Progress(step=loaded.step, tokens=loaded.meta["tokens"], updates=found.updates)
    _continue_numeric(progress, loaded, rollbacks if newest else (), folder, environment)
    return Restored(
        progress=progress,
        path=loaded.path,
        on_disk=_newest_on_disk(loaded, decision, folder),
        back=decision.back,
    )


def _note_islands(
    found: LoadedIsland, folder: RunFolder, environment: RankEnvironment, assembly: Assembly
) -> None:
    if environment.rank == 0 and found.stored != assembly.layout.island:
        append_event(
            folder.events,
            now_s=time.time(),
            kind="islands_changed",
            step=found.loaded.step,
            before=found.stored,
            now=assembly.layout.island,
        )


def _agreed_decision(
    mode: str, folder: RunFolder, environment: RankEnvironment, group: dist.ProcessGroup
) -> Resume:
    """What rank 0 sees, so that a late view of a shared folder cannot split the ranks."""
    payload = b""
    if environment.rank == 0:
        decision = decide_resume(mode, folder)
        fields = [decision.kind, [str(path) for path in decision.candidates], decision.back]
        payload = json.dumps(fields).encode()
    kind, paths, back = json.loads(broadcast_bytes(payload, group=group))
    return Resume(kind=kind, candidates=tuple(Path(path) for path in paths), back=back)


def _takes_newest(mode: str, decision: Resume) -> bool:
    """Whether the run goes on from its own newest state, wherever that is."""
    return mode != "never" and decision.kind != "from" and not decision.back


def _sources(snapshots: Sequence[SnapshotSource], candidates: Sequence[Path]) -> list[Source]:
    """All that may be loaded, in the order of trying. Without snapshots, names do not matter: the
    user may have copied a checkpoint to a folder of any name."""
    if not snapshots:
        return [StepFolder(path) for path in candidates]
    disk_steps = [step_of(path) for path in candidates]
    return [
        snapshots[found.number] if found.kind == "memory" else StepFolder(candidates[found.number])
        for found in in_order([snapshot.step for snapshot in snapshots], disk_steps)
    ]


def _newest_on_disk(loaded: Loaded, decision: Resume, folder: RunFolder) -> Path | None:
    own = [path for path in decision.candidates if path.parent == folder.checkpoints]
    if loaded.place == "disk":
        return loaded.path if loaded.path in own else None
    return own[0] if own else None


def _prove(found: LoadedIsland, assembly: Assembly, environment: RankEnvironment) -> None:
    if found.probe_loss is None:
        # What a snapshot has was checked byte by byte, and needs no such proof.
        return
    meta = found.loaded.meta
    dtypes = (meta["arithmetic"]["dtype"], str(assembly.dtype))
    precision: Precision = "bf16" if any("bfloat16" in dtype for dtype in dtypes) else "fp32"
    check_same_loss(
        found.probe_loss,
        probe_loss(assembly, environment),
        same_layout=(meta["layout"], meta["arithmetic"])
        == (asdict(assembly.layout), arithmetic_of(assembly, environment)),
        precision=precision,
    )


def _continue_numeric(
    progress: Progress,
    loaded: Loaded,
    rollbacks: tuple[Rollback, ...],
    folder: RunFolder,
    environment: RankEnvironment,
) -> None:
    record = loaded.meta.get("numeric")
    progress.restore_numeric(record)
    made = () if record is None else decode(record["rollbacks"])
    progress.rollbacks = joined(made, rollbacks)
    if environment.rank == 0 and (progress.rollbacks or folder.rollbacks.exists()):
        write_rollbacks(folder.rollbacks, progress.rollbacks)


def _return_to(loaded: Loaded, folder: RunFolder) -> None:
    """A path into this run's own folder goes back on purpose: what came later must not win when
    the run is started again."""
    if loaded.path.parent == folder.checkpoints:
        set_aside_later(folder.checkpoints, loaded.step)


def _drop_lines(folder: RunFolder, environment: RankEnvironment, step: int) -> None:
    if environment.rank == 0:
        drop_later_steps(folder, step)


def _continue_exchange(
    found: LoadedIsland,
    folder: RunFolder,
    environment: RankEnvironment,
    group: dist.ProcessGroup,
    assembly: Assembly,
) -> None:
    loaded = found.loaded
    causes = restore_replicas(
        assembly,
        environment.rank,
        loaded.path,
        loaded.meta.get("replicas"),
        group,
        before=found.before,
    )
    for cause in causes:
        if environment.rank == 0:
            append_event(
                folder.events,
                now_s=time.time(),
                kind="compression_reset",
                step=loaded.step,
                cause=cause,
            )


def _record(loaded: Loaded, folder: RunFolder, environment: RankEnvironment) -> None:
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
