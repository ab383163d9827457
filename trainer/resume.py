"""Go on from a checkpoint, and prove that it is the same run."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from comms.config import RankEnvironment
from comms.groups import broadcast_bytes
from trainer.assembly import Assembly
from trainer.checkpoint.folder import set_aside_later
from trainer.checkpoint.loading import Loaded, load
from trainer.checkpoint.proof import Precision, check_same_loss
from trainer.checkpoint.resume import decide_resume, drop_later_steps
from trainer.probe import probe_loss
from trainer.progress import Progress
from trainer.replica_state import PREFIX, restore_replicas
from trainer.run_folder import RunFolder, append_event
from trainer.state import arithmetic_of, require_same_data, tensors_to_fill


@dataclass(frozen=True, kw_only=True)
class Restored:
    """Where a resumed run stands."""

    progress: Progress
    path: Path
    """The checkpoint it goes on from."""


def restore(
    mode: str,
    *,
    folder: RunFolder,
    environment: RankEnvironment,
    group: dist.ProcessGroup,
    assembly: Assembly,
    cursor: dict[str, Any],
) -> Restored | None:
    """Load the newest loadable checkpoint that `run.resume` allows; None starts afresh.

    All ranks call it. Raises RecipeError where the checkpoint does not fit the recipe, DataError
    where none can be loaded, NumericError where the loss of the probe batch is another one than
    when the checkpoint was written.
    """
    candidates = _agreed_candidates(mode, folder, environment, group)
    if not candidates:
        _drop_lines(folder, environment, 0)
        return None
    tensors = tensors_to_fill(assembly.weights, assembly.optimizer)
    loaded = load(tensors, candidates, group, apart=PREFIX)
    assembly.weights.publish()
    require_same_data(loaded.meta["data"], cursor)
    assembly.optimizer.restored(tensors, loaded.meta["updates"])
    del tensors
    _prove(loaded, assembly, environment)
    if environment.rank == 0 and mode not in ("auto", "must"):
        _return_to(loaded, folder)
    _drop_lines(folder, environment, loaded.step)
    _record(loaded, folder, environment)
    _continue_exchange(loaded, folder, environment, group, assembly)
    progress = Progress(step=loaded.step, tokens=loaded.meta["tokens"])
    return Restored(progress=progress, path=loaded.path)


def _agreed_candidates(
    mode: str, folder: RunFolder, environment: RankEnvironment, group: dist.ProcessGroup
) -> list[Path]:
    """What rank 0 sees, so that a late view of a shared folder cannot split the ranks."""
    payload = b""
    if environment.rank == 0:
        decision = decide_resume(mode, folder)
        payload = json.dumps([str(path) for path in decision.candidates]).encode()
    return [Path(path) for path in json.loads(broadcast_bytes(payload, group=group))]


def _prove(loaded: Loaded, assembly: Assembly, environment: RankEnvironment) -> None:
    meta = loaded.meta
    dtypes = (meta["arithmetic"]["dtype"], str(assembly.dtype))
    precision: Precision = "bf16" if any("bfloat16" in dtype for dtype in dtypes) else "fp32"
    check_same_loss(
        meta["probe_loss"],
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


def _continue_exchange(
    loaded: Loaded,
    folder: RunFolder,
    environment: RankEnvironment,
    group: dist.ProcessGroup,
    assembly: Assembly,
) -> None:
    saved = loaded.meta.get("replicas")
    for cause in restore_replicas(assembly, environment.rank, loaded.path, saved, group):
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
        folder.events, now_s=now_s, kind="resumed", step=loaded.step, path=str(loaded.path)
    )
