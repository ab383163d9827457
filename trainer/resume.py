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
from parallel.layout import Layout
from trainer.assembly import Assembly
from trainer.checkpoint.filling import Source
from trainer.checkpoint.folder import set_aside_later, step_of
from trainer.checkpoint.loading import Loaded, StepFolder, choose
from trainer.checkpoint.proof import Precision, check_same_loss
from trainer.checkpoint.resume import Resume, decide_resume, drop_later_steps, last_step_in
from trainer.islands.checkpoints import LoadedIsland, load_island
from trainer.islands.exchange import Islands
from trainer.islands.memory import Kept, find_kept, load_kept
from trainer.islands.share import BatchShare, Part
from trainer.keeping.newest import in_order
from trainer.keeping.source import SnapshotSource
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

    past_step: int = -1
    """The step that some island has done already, where they go on from different ones."""

    share: BatchShare | None = None
    """What of each batch this rank's island takes, where that was different before."""


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
) -> Restored | None:
    """Load the newest whole state that `run.resume` allows; None starts afresh.

    Islands go on where they were. Others than the checkpoint's start from the parameters that all
    had agreed on, which is noted as an event.

    All ranks call it. Snapshots in memory, which `find_snapshots` looks for, of the run or of one
    of its islands, come before checkpoints of the same step. Raises RecipeError where the state
    does not fit the recipe, DataError where none can be loaded, NumericError where the loss of the
    probe batch is another one than when the checkpoint was written.
    """
    decision = _agreed_decision(mode, folder, environment, group)
    takes_newest = _takes_newest(mode, decision)
    if islands is not None and takes_newest:
        sources_of = {number: find_snapshots(number) for number in islands.members}
        kept = find_kept(sources_of, islands, group)
        if kept is not None and _is_newer(kept, decision):
            return _restore_islands(
                kept, decision, folder, environment, group, assembly, cursor, islands
            )
    snapshots = find_snapshots(None) if takes_newest else []
    sources = _sources(snapshots, decision.candidates)
    if not sources:
        _drop_lines(folder, environment, 0)
        return None
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
    if environment.rank == 0 and mode not in ("auto", "must"):
        _return_to(loaded, folder)
    _drop_lines(folder, environment, loaded.step)
    _record(loaded, folder, environment)
    members = () if islands is None else islands.members
    _note_islands(found.stored, members, folder, environment, loaded.step)
    causes = restore_replicas(assembly, environment.rank, chosen, group, before=found.before)
    _note_resets(causes, folder, environment, loaded.step)
    return Restored(
        progress=Progress(step=loaded.step, tokens=loaded.meta["tokens"], updates=found.updates),
        path=loaded.path,
        on_disk=_newest_on_disk(loaded, decision, folder),
        back=decision.back,
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


def _return_to(loaded: Loaded, folder: RunFolder) -> None:
    """A path into this run's own folder goes back on purpose: what came later must not win when
    the run is started again."""
    if loaded.path.parent == folder.checkpoints:
        set_aside_later(folder.checkpoints, loaded.step)


def _drop_lines(folder: RunFolder, environment: RankEnvironment, step: int) -> None:
    if environment.rank == 0:
        drop_later_steps(folder, step)


def _restore_islands(
    kept: Kept,
    decision: Resume,
    folder: RunFolder,
    environment: RankEnvironment,
    group: dist.ProcessGroup,
    assembly: Assembly,
    cursor: dict[str, Any],
    islands: Islands,
) -> Restored:
    """Every island goes on from its own newest snapshot; not all of the same step."""
    reunion, meta = kept.reunion, kept.meta(islands.number)
    tensors = tensors_to_fill(assembly.weights, assembly.optimizer)
    load_kept(kept, tensors, islands, group)
    assembly.weights.publish()
    require_same_data(meta["data"], cursor)
    assembly.optimizer.restored(tensors, meta["updates"])
    for number, chosen in kept.chosen.items():
        mine = number == islands.number
        causes = restore_replicas(assembly, environment.rank, chosen, group, mine=mine)
        if mine:
            _note_resets(causes, folder, environment, meta["step"])
    chosen = kept.chosen[reunion.source(islands.number)]
    _drop_lines(folder, environment, meta["step"])
    if islands.wire is not None:
        reported = last_step_in(folder) if environment.rank == 0 else meta["step"]
        islands.reports_again(meta["outer"]["reports"], after=reported)
    loaded = Loaded(
        step=meta["step"], path=chosen.path, place="memory", meta=meta, skipped=chosen.skipped
    )
    _record(loaded, folder, environment)
    before = tuple(meta["outer"]["members"])
    _note_islands(before, islands.members, folder, environment, loaded.step, reunion.joining)
    return Restored(
        progress=Progress(step=meta["step"], tokens=meta["tokens"], updates=meta["updates"]),
        path=chosen.path,
        on_disk=_newest_on_disk(loaded, decision, folder),
        back=False,
        past_step=reunion.last_step,
        share=kept.share(islands),
    )


def _is_newer(kept: Kept, decision: Resume) -> bool:
    """Whether what islands have in memory comes before the newest checkpoint."""
    on_disk = [step_of(path) for path in decision.candidates[:1]]
    return not on_disk or kept.reunion.first_step >= on_disk[0]


def share_of(layout: Layout, rank: int, restored: Restored | None) -> BatchShare:
    """What of each batch this rank's island takes."""
    if restored is not None and restored.share is not None:
        return restored.share
    return BatchShare(Part(layout.island_of(rank), layout.island))


def _note_islands(
    before: Sequence[int],
    now: Sequence[int],
    folder: RunFolder,
    environment: RankEnvironment,
    step: int,
    joined: Sequence[int] = (),
) -> None:
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


def _note_resets(
    causes: Sequence[str], folder: RunFolder, environment: RankEnvironment, step: int
) -> None:
    for cause in causes:
        if environment.rank == 0:
            append_event(
                folder.events,
                now_s=time.time(),
                kind="compression_reset",
                step=step,
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
