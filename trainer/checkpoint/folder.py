"""The folder of checkpoints on disk, and the moves that keep it loadable at every moment.

    checkpoints/step-00000100/            complete: manifest.json and its data files
    checkpoints/step-00000200.partial/    being written
    checkpoints/step-00000100.replaced/   complete, while a new save of the same step moves in
    checkpoints/step-00000050.removed/    being deleted
    checkpoints/latest                    name of the newest complete folder

Guarantees, each asserted in tests/trainer/checkpoint/test_folder.py:
- a folder bears a step's plain name only when everything in it is on disk;
- whenever the process dies, the newest checkpoint that was complete before is still listed;
- `latest` names a complete folder; while a step is saved again, that may be its `.replaced` one;
- pruning never touches the checkpoint just written.

All functions are called by one process at a time. Neither torch nor ray.
"""

import os
import re
import shutil
from pathlib import Path

from trainer.run_folder import write_atomically

MANIFEST_NAME = "manifest.json"
LATEST_NAME = "latest"

_LISTED = re.compile(r"step-(\d{8,})(\.replaced)?")
_LEFTOVER = re.compile(r"step-\d{8,}\.(partial|removed)(-\d+)?|\.latest\.[0-9a-f]+")


def step_name(step: int) -> str:
    """Folder name of a step; names sort as steps do up to step 99999999."""
    return f"step-{step:08d}"


def step_of(path: Path) -> int:
    """The step of a folder that `list_complete` lists."""
    match = _LISTED.fullmatch(path.name)
    assert match is not None, f"{path} is no step folder"
    return int(match[1])


def saved_step_of(path: Path) -> int | None:
    """The step of a checkpoint's folder; None where its name does not say."""
    match = _LISTED.fullmatch(path.name)
    return int(match[1]) if match else None


def list_complete(directory: Path) -> list[tuple[int, Path]]:
    """Step and folder of every complete checkpoint in `directory`, newest first."""
    if not directory.is_dir():
        return []
    found = []
    for entry in directory.iterdir():
        match = _LISTED.fullmatch(entry.name)
        if match and (entry / MANIFEST_NAME).is_file():
            found.append((int(match[1]), match[2] is None, entry))
    found.sort(key=lambda item: item[:2], reverse=True)
    return [(step, path) for step, _, path in found]


def create_aside(directory: Path, step: int) -> Path:
    """A new, empty folder that only the caller writes to, for the data of `step`."""
    if not directory.is_dir():
        directory.mkdir(parents=True, exist_ok=True)
        sync_directory(directory.parent)
    return _create_unused(directory, f"{step_name(step)}.partial")


def commit(aside: Path, step: int) -> Path:
    """Give the written folder its name and point `latest` at it; the folder's path.

    Every file in `aside` must be on disk already. A checkpoint of the same step gives way, and
    stays loadable until the new one has its name.
    """
    directory = aside.parent
    final = directory / step_name(step)
    sync_directory(aside)
    replaced = directory / f"{step_name(step)}.replaced"
    if final.exists():
        if replaced.exists():
            _remove(replaced)
        os.rename(final, replaced)
    os.rename(aside, final)
    sync_directory(directory)
    write_atomically(directory / LATEST_NAME, final.name + "\n")
    sync_directory(directory)
    if replaced.exists():
        _remove(replaced)
    return final


def read_latest(directory: Path) -> Path | None:
    """The complete folder that `latest` names, or None where there is none."""
    pointer = directory / LATEST_NAME
    if not pointer.is_file():
        return None
    name = pointer.read_text().strip()
    for path in (directory / name, directory / f"{name}.replaced"):
        if (path / MANIFEST_NAME).is_file():
            return path
    return None


def prune(directory: Path, *, keep_last: int, written_step: int) -> list[Path]:
    """Delete all but the `keep_last` newest checkpoints up to `written_step`; what was deleted.

    Checkpoints of later steps are left alone: they stem from before a return to an earlier step,
    do not count, and are replaced when the run gets there again.
    """
    past = [path for step, path in list_complete(directory) if step <= written_step]
    doomed = past[max(keep_last, 1) :]
    for path in doomed:
        _remove(path)
    return doomed


def set_aside_later(directory: Path, step: int) -> list[Path]:
    """Take checkpoints after `step` out of the listing, when a run returns to `step`; where they
    are now. Nothing is deleted: they keep their content as `abandoned-step-…`."""
    moved = []
    for later, path in list_complete(directory):
        if later > step:
            place = _create_unused(directory, f"abandoned-{path.name}")
            os.rename(path, place)
            moved.append(place)
    return moved


def remove_leftovers(directory: Path) -> list[Path]:
    """Delete what killed or failed saves left behind; what was deleted."""
    if not directory.is_dir():
        return []
    removed = []
    for entry in list(directory.iterdir()):
        superseded = entry.name.removesuffix(".replaced")
        is_old = superseded != entry.name and (directory / superseded / MANIFEST_NAME).is_file()
        if is_old and _LISTED.fullmatch(entry.name):
            _remove(entry)
        elif not _LEFTOVER.fullmatch(entry.name):
            continue
        elif entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink()
        removed.append(entry)
    return removed


def sync_directory(directory: Path) -> None:
    """Make the names in `directory` survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    # Renamed first: a folder with its manifest and half of its data must never look complete.
    base = path.name.removesuffix(".replaced")
    doomed = _create_unused(path.parent, f"{base}.removed")
    os.rename(path, doomed)
    # Files that a reader still has open may refuse on network disks; the next start tries again.
    shutil.rmtree(doomed, ignore_errors=True)


def _create_unused(directory: Path, name: str) -> Path:
    attempt = 0
    while True:
        path = directory / (f"{name}-{attempt}" if attempt else name)
        try:
            path.mkdir()
        except FileExistsError:
            attempt += 1
        else:
            return path
