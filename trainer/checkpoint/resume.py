"""Whether a run starts afresh or goes on, and from where. Neither torch nor ray.

Guarantees, each asserted in tests/trainer/checkpoint/test_resume.py:
- the answer depends only on `resume` and on what the folders hold;
- nothing is started over a run that has steps, unless `auto` finds no checkpoint to go on from;
- candidates are listed newest first;
- after `drop_later_steps` no file lists a step twice or one after the step gone on from.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trainer.checkpoint.folder import MANIFEST_NAME, list_complete
from trainer.errors import RecipeError
from trainer.run_folder import RunFolder, read_lines, write_atomically


@dataclass(frozen=True, kw_only=True)
class Resume:
    """How a run begins."""

    kind: Literal["fresh", "continue", "from"]
    """`continue` goes on with this run; `from` starts it from another run's checkpoint."""

    candidates: tuple[Path, ...] = ()
    """Step folders to try, newest first."""

    back: bool = False
    """Whether the user names a state of this very run: what came after it must not win."""

    note: str = ""
    """What the user should be told about the decision, if anything."""


def decide_resume(resume: str, folder: RunFolder) -> Resume:
    """Carry out the recipe's `run.resume` on what `folder` holds.

    Raises RecipeError where the two do not fit.
    """
    own = find_checkpoints(folder.checkpoints)
    if resume == "auto":
        return _auto(own, folder)
    if resume == "never":
        return _never(own, folder)
    if resume == "must":
        return _must(own, folder)
    return _from_path(Path(resume).expanduser().absolute(), own, folder)


def find_checkpoints(path: Path) -> tuple[Path, ...]:
    """Step folders in `path`, newest first: a run folder, a folder of checkpoints, or one step."""
    if (path / MANIFEST_NAME).is_file():
        return (path,)
    for directory in (path, RunFolder(path).checkpoints):
        if found := list_complete(directory):
            return tuple(step_folder for _, step_folder in found)
    return ()


def drop_later_steps(folder: RunFolder, step: int) -> int:
    """Remove the lines of steps after `step` from metrics.jsonl and plans.jsonl; how many.

    Called by one process before the run goes on from `step`; 0 for a fresh start. Half-written
    lines go too. Events stay: they tell what happened, and that includes what was lost.
    """
    return sum(_drop_from(path, step) for path in (folder.metrics, folder.plans))


def last_step_in(folder: RunFolder) -> int:
    """The step of the last line of metrics.jsonl; 0 where there is none."""
    lines = read_lines(folder.metrics)
    return int(lines[-1]["step"]) if lines else 0


def _auto(own: tuple[Path, ...], folder: RunFolder) -> Resume:
    if own:
        return Resume(kind="continue", candidates=own)
    if _has_steps(folder):
        note = (
            f"{folder.root} has steps of an earlier start and no complete checkpoint; "
            "starting afresh, their lines are replaced"
        )
        return Resume(kind="fresh", note=note)
    return Resume(kind="fresh")


def _never(own: tuple[Path, ...], folder: RunFolder) -> Resume:
    if own or _has_steps(folder):
        held = f"{len(own)} checkpoints" if own else "metrics of an earlier run"
        raise RecipeError(
            f"run.resume=never, but {folder.root} already holds {held}; choose another run.name, "
            "or run.resume=auto to go on with it"
        )
    return Resume(kind="fresh")


def _must(own: tuple[Path, ...], folder: RunFolder) -> Resume:
    if not own:
        raise RecipeError(
            f"run.resume=must, but {folder.checkpoints} holds no complete checkpoint; check "
            "run.name and run.dir, or set run.resume=auto to start afresh"
        )
    return Resume(kind="continue", candidates=own)


def _from_path(path: Path, own: tuple[Path, ...], folder: RunFolder) -> Resume:
    if not path.exists():
        raise RecipeError(
            f"run.resume={path} does not exist; give a run folder, its checkpoints folder or a "
            "step folder, or one of auto, never, must"
        )
    candidates = find_checkpoints(path)
    if not candidates:
        raise RecipeError(
            f"run.resume={path} holds no complete checkpoint; give a run folder, its checkpoints "
            "folder or a step folder"
        )
    if path.resolve().is_relative_to(folder.root.resolve()):
        return Resume(kind="continue", candidates=candidates, back=True)
    if own:
        # The same recipe started again after a fault must not fall back to its starting point.
        note = f"{folder.root} has checkpoints of its own and goes on from them, not from {path}"
        return Resume(kind="continue", candidates=own, note=note)
    return Resume(kind="from", candidates=candidates)


def _has_steps(folder: RunFolder) -> bool:
    return folder.metrics.is_file() and folder.metrics.stat().st_size > 0


def _drop_from(path: Path, step: int) -> int:
    if not path.is_file():
        return 0
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    kept = [line for line in lines if _is_step_up_to(line, step)]
    if len(kept) < len(lines):
        write_atomically(path, "".join(kept))
    return len(lines) - len(kept)


def _is_step_up_to(line: str, step: int) -> bool:
    if not line.endswith("\n"):
        return False
    try:
        record = json.loads(line)
    except ValueError:
        return False
    return isinstance(record, dict) and record.get("step", 0) <= step
