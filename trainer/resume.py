"""Go on from a snapshot in memory or a checkpoint on disk, and prove that it is the same run."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch.distributed as dist

from comms.config import RankEnvironment
from comms.groups import broadcast_bytes
from trainer.assembly import Assembly
from trainer.checkpoint.filling import Source
from trainer.checkpoint.folder import set_aside_later, step_of
from trainer.checkpoint.loading import Chosen, Loaded, StepFolder, choose
from trainer.checkpoint.proof import Precision, check_same_loss
from trainer.checkpoint.resume import Resume, decide_resume
from trainer.island_resume import may_go_on, restore_islands
from trainer.islands.checkpoints import LoadedIsland, load_island
from trainer.islands.exchange import Islands
from trainer.islands.memory import find_kept
from trainer.keeping.newest import in_order
from trainer.keeping.source import SnapshotSource
from trainer.numeric.jumps import Rollback
from trainer.numeric.record import Admitted
from trainer.probe import probe_loss
from trainer.progress import Progress
from trainer.replica_state import restore_replicas
from trainer.restored import (
    Restored,
    continue_numeric,
    drop_lines,
    newest_on_disk,
    note_islands,
    note_resets,
    record_resumed,
)
from trainer.run_folder import RunFolder
from trainer.state import arithmetic_of, require_same_data, tensors_to_fill


def restore(
    mode: str,
    *,
    folder: RunFolder,
    environment: RankEnvironment,
    group: dist.ProcessGroup,
    assembly: Assembly,
    cursor: dict[str, Any],
    islands: Islands | None,
    find_snapshots: Callable[[int | None], list[SnapshotSource]],
    rollbacks: tuple[Rollback, ...],
) -> Restored | None:
    """Load the newest whole state that `run.resume` allows; None starts afresh.

    Islands go on where they were. Others than the checkpoint's start from the parameters that all
    had agreed on, which is noted as an event.

    All ranks call it. Snapshots in memory, which `find_snapshots` looks for, of the run or of one
    of its islands, come before checkpoints of the same step; what one of the run's `rollbacks` left
    behind is passed over, unless the user goes back on purpose. Raises RecipeError where the state
    does not fit the recipe, DataError where none can be loaded, NumericError where the loss of the
    probe batch is another one than when the checkpoint was written.
    """
    decision = _agreed_decision(mode, folder, environment, group)
    newest = _takes_newest(mode, decision)
    if islands is not None and newest:
        sources_of = {number: find_snapshots(number) for number in islands.members}
        kept = find_kept(sources_of, islands, group)
        if kept is not None and may_go_on(kept, decision.candidates, rollbacks):
            on_disk = newest_on_disk(None, decision.candidates, folder)
            return restore_islands(
                kept, on_disk, folder, environment, group, assembly, cursor, islands, rollbacks
            )
    snapshots = find_snapshots(None) if newest else []
    sources = _sources(snapshots, decision.candidates)
    if newest:
        sources = [Admitted(source, rollbacks) for source in sources]
    if not sources:
        drop_lines(folder, environment, 0)
        return None
    found, chosen = _loaded(sources, environment, group, assembly, cursor, islands)
    loaded = found.loaded
    if environment.rank == 0 and mode not in ("auto", "must"):
        _return_to(loaded, folder)
    drop_lines(folder, environment, loaded.step)
    record_resumed(loaded, folder, environment)
    members = () if islands is None else islands.members
    note_islands(found.stored, members, folder, environment, loaded.step)
    causes = restore_replicas(assembly, environment.rank, chosen, group, before=found.before)
    note_resets(causes, folder, environment, loaded.step)
    progress = Progress(step=loaded.step, tokens=loaded.meta["tokens"], updates=found.updates)
    continue_numeric(progress, loaded.meta, rollbacks if newest else (), folder, environment)
    return Restored(
        progress=progress,
        path=loaded.path,
        on_disk=newest_on_disk(loaded, decision.candidates, folder),
        back=decision.back,
    )


def _loaded(
    sources: Sequence[Source],
    environment: RankEnvironment,
    group: dist.ProcessGroup,
    assembly: Assembly,
    cursor: dict[str, Any],
    islands: Islands | None,
) -> tuple[LoadedIsland, Chosen]:
    """What the first whole one of `sources` has for this rank is in place, and proven."""
    tensors = tensors_to_fill(assembly.weights, assembly.optimizer)
    chosen = choose(tensors, sources, group)
    found = load_island(tensors, chosen, group, islands)
    loaded = found.loaded
    assembly.weights.publish()
    require_same_data(loaded.meta["data"], cursor)
    assembly.optimizer.restored(tensors, found.updates)
    del tensors
    if islands is not None and found.kind != "same":
        islands.start_from(loaded.step)
    _prove(found, assembly, environment)
    return found, chosen


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


def _return_to(loaded: Loaded, folder: RunFolder) -> None:
    """A path into this run's own folder goes back on purpose: what came later must not win when
    the run is started again."""
    if loaded.path.parent == folder.checkpoints:
        set_aside_later(folder.checkpoints, loaded.step)
