"""Islands go on, each from its own newest snapshot in memory."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from comms.config import RankEnvironment
from trainer.assembly import Assembly
from trainer.checkpoint.folder import step_of
from trainer.checkpoint.loading import Loaded
from trainer.checkpoint.resume import last_step_in
from trainer.islands.exchange import Islands
from trainer.islands.memory import Kept, load_kept
from trainer.numeric.jumps import Rollback, abandoned_by, decode
from trainer.progress import Progress
from trainer.replica_state import restore_replicas
from trainer.restored import (
    Restored,
    continue_numeric,
    drop_lines,
    note_islands,
    note_resets,
    record_resumed,
)
from trainer.run_folder import RunFolder
from trainer.state import require_same_data, tensors_to_fill


def may_go_on(kept: Kept, candidates: Sequence[Path], rollbacks: Sequence[Rollback]) -> bool:
    """Whether what islands have in memory comes before the newest of the checkpoints, and no
    rollback left it behind."""
    for chosen in kept.chosen.values():
        meta = chosen.manifest.meta
        made = decode(meta.get("numeric", {}).get("rollbacks", []))
        if abandoned_by(meta["step"], made, rollbacks) is not None:
            return False
    on_disk = [step_of(path) for path in candidates[:1]]
    return not on_disk or kept.reunion.first_step >= on_disk[0]


def restore_islands(
    kept: Kept,
    on_disk: Path | None,
    folder: RunFolder,
    environment: RankEnvironment,
    group: dist.ProcessGroup,
    assembly: Assembly,
    cursor: dict[str, Any],
    islands: Islands,
    rollbacks: tuple[Rollback, ...],
) -> Restored:
    """Load it; not all islands are at the same step. All ranks of `group`, which is everybody, call
    it. `on_disk` is the newest checkpoint. Raises RecipeError where a snapshot does not fit the
    recipe, DataError where it cannot be read."""
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
            note_resets(causes, folder, environment, meta["step"])
    chosen = kept.chosen[reunion.source(islands.number)]
    drop_lines(folder, environment, meta["step"])
    if islands.wire is not None:
        reported = last_step_in(folder) if environment.rank == 0 else meta["step"]
        islands.reports_again(meta["outer"]["reports"], after=reported)
    loaded = Loaded(
        step=meta["step"], path=chosen.path, place="memory", meta=meta, skipped=chosen.skipped
    )
    record_resumed(loaded, folder, environment)
    before = tuple(meta["outer"]["members"])
    note_islands(before, islands.members, folder, environment, loaded.step, reunion.joining)
    progress = Progress(step=meta["step"], tokens=meta["tokens"], updates=meta["updates"])
    continue_numeric(progress, meta, rollbacks, folder, environment)
    return Restored(
        progress=progress,
        path=chosen.path,
        on_disk=on_disk,
        back=False,
        past_step=reunion.last_step,
        share=kept.share(islands),
    )
