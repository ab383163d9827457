"""Snapshots of a host's memory, copied to disk when nobody is left to go on from them in time.

Shares lie on disk as they do in memory, so a start of the run finds them in either place and goes
on from any mixture of both. Neither torch nor ray.

Guarantees, each asserted in tests/trainer/keeping/test_rescue.py:
- of the newest steps, and of those that other hosts have copies of, all whole shares of this host
  come to disk, islands' included, and nothing else;
- what is on disk already is not written again, also by several hosts that have the same share;
- a share that changes or is damaged on the way is left out, and the others come.
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from trainer.keeping.folder import (
    FoundShare,
    install_share,
    list_shares,
    rank_folder,
    read_share,
    remove_older,
)
from trainer.keeping.header import Header, ShareDamaged

_NEWEST_STEPS = 2
"""The newest one is whole on all ranks, or the one before it is."""


def parts_of(folder: Path) -> list[Path]:
    """The folder of a run's shares, and those of islands in it."""
    return [folder, *sorted(folder.glob("island-*"))]


def rescue(memory: Path, to: Path) -> list[Header]:
    """Copy what is worth it from `memory`, this host's folder of a run's shares, to the folder
    `to`; what came. Raises OSError where the disk refuses."""
    saved = []
    for part in parts_of(memory):
        target = to / part.relative_to(memory)
        for found in worth_saving(list_shares(part)):
            with suppress(ShareDamaged, FileNotFoundError):
                if not _is_there(found.header, target):
                    _write(found, target)
                saved.append(found.header)
    return saved


def worth_saving(shares: Iterable[FoundShare]) -> list[FoundShare]:
    """The shares of the newest steps that ranks of this host wrote, all copies of other hosts'
    shares, and this host's own of the same steps; one of each."""
    listed = sorted(shares, key=lambda found: (found.header.generation, found.header.step))
    own = [found for found in listed if not _is_copy(found)]
    times = sorted({_time(found) for found in own})[-_NEWEST_STEPS:]
    times += [_time(found) for found in listed if _is_copy(found)]
    chosen = {(*_time(one), one.header.rank, one.header.ranks): one for one in listed}
    return [found for found in chosen.values() if _time(found) in times]


def keep_newest(rescued: Path) -> None:
    """Delete what earlier rescues left, but for the last start that was rescued."""
    for part in parts_of(rescued):
        newest = max(
            (found.header.generation for found in list_shares(part, trusted=True)), default=0
        )
        remove_older(part, newest)


def _time(found: FoundShare) -> tuple[int, int]:
    return found.header.generation, found.header.step


def _is_copy(found: FoundShare) -> bool:
    return found.path.name.startswith("copy-")


def _is_there(header: Header, folder: Path) -> bool:
    place = rank_folder(folder, generation=header.generation, rank=header.rank, ranks=header.ranks)
    return (place / f"copy-{header.step:08d}").exists()


def _write(found: FoundShare, folder: Path) -> None:
    # As many as can be worth it: none of them is older than another host's newest.
    path = install_share(folder, read_share(found.path), copies=2 * _NEWEST_STEPS, trusted=True)
    for synced in (path, path.parent):
        descriptor = os.open(synced, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
