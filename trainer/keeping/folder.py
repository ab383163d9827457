"""The folder of a run's shares on one host, and how shares get from one host to another.

    FOLDER/generation-00000003/rank-00001-of-00004/slot-0       written by that rank
    FOLDER/generation-00000003/rank-00001-of-00004/copy-00000120    brought from another host

A process that outlives the ranks, and has loaded neither torch nor ray, can do all of it:

    for share in list_shares(folder): send(read_share(share.path))     # on one host
    install_share(folder, received)                                    # on the other

Guarantees, each asserted in tests/trainer/keeping/test_folder.py:
- what `list_shares` lists was whole when it was listed, its payload apart;
- a share that changes while it is read is noticed by the reader;
- `install_share` leaves a whole share or nothing, and never touches what a rank writes;
- of the copies of one rank, the newest are kept.
"""

import contextlib
import os
import re
import shutil
import socket
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from glob import glob
from itertools import chain
from pathlib import Path

from trainer.keeping.header import PAGE_BYTES, Checksum, Header, ShareDamaged, unpack

BLOCK_BYTES = 4 * 1024 * 1024
"""Bytes that `read_share` hands out at a time."""

_GENERATION = re.compile(r"generation-(\d{8,})")
_SHARE = re.compile(r"slot-\d+|copy-\d{8,}")


@dataclass(frozen=True)
class FoundShare:
    """A share in the folder of this host."""

    path: Path
    header: Header


def run_folder_in_memory(base: str, *, name: str, run_root: Path) -> Path:
    """Where shares of the run in `run_root` are kept under `base`, on every host the same."""
    place = zlib.crc32(str(run_root).encode())
    return Path(base) / f"braid-{name}-{place:08x}"


def rank_folder(folder: Path, *, generation: int, rank: int, ranks: int) -> Path:
    """Where one rank's shares are."""
    return folder / f"generation-{generation:08d}" / f"rank-{rank:05d}-of-{ranks:05d}"


def make_folder(folder: Path, inner: Path, *, trusted: bool = False) -> None:
    """Create `folder`, for this user alone, and `inner` in it.

    Raises PermissionError where somebody else owns it: in a folder that all may write to, others
    could leave weights of their own. One in a run's folder is `trusted`: file systems of a network
    may name other owners.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not trusted:
        require_own(folder)
    inner.mkdir(mode=0o700, parents=True, exist_ok=True)


def require_own(folder: Path) -> None:
    """Raise PermissionError where `folder` is a link, or belongs to another user."""
    found = folder.lstat()
    if folder.is_symlink() or found.st_uid != os.getuid():
        raise PermissionError(
            f"{folder} belongs to user {found.st_uid} and not to {os.getuid()}, or is a link; "
            "snapshots are read only from a folder of one's own: remove it, or set keep.dir"
        )


def read_header(path: Path) -> Header:
    """Raises ShareDamaged where the share is not whole, OSError where it cannot be read."""
    with path.open("rb", buffering=0) as file:
        header = unpack(file.read(PAGE_BYTES))
        if os.fstat(file.fileno()).st_size < header.total_bytes:
            raise ShareDamaged(f"it is cut off before its {header.total_bytes} bytes")
    return header


def list_shares(folder: Path, *, trusted: bool = False) -> list[FoundShare]:
    """All shares on this host that are not being written, of whatever run, start and step. Raises
    as `make_folder` does."""
    if not folder.is_dir():
        return []
    if not trusted:
        require_own(folder)
    found = []
    for path in sorted(_paths(folder, "generation-*/rank-*/*")):
        if not _SHARE.fullmatch(path.name):
            continue
        # What is being written, or just vanished, is not there for those who ask.
        with contextlib.suppress(ShareDamaged, FileNotFoundError):
            found.append(FoundShare(path, read_header(path)))
    return found


def read_share(path: Path) -> Iterator[bytes]:
    """The bytes of a share, block by block: first its header's page.

    Raises ShareDamaged, at the latest behind the last block, where the share was written to
    meanwhile: what was read is then of no use.
    """
    header = read_header(path)
    with path.open("rb", buffering=0) as file:
        left = header.total_bytes
        page = file.read(PAGE_BYTES)
        while page:
            left -= len(page)
            yield page
            page = file.read(min(BLOCK_BYTES, left))
        file.seek(0)
        if left or unpack(file.read(PAGE_BYTES)) != header:
            raise ShareDamaged(f"{path} changed while it was read")


def install_share(
    folder: Path, blocks: Iterable[bytes], *, copies: int = 2, trusted: bool = False
) -> Path:
    """Write a share that `read_share` read, check it, and give it its name; its path.

    Of each rank, the `copies` newest stay. Raises ShareDamaged where it is not whole, OSError where
    there is no room, and leaves nothing behind then.
    """
    rest = iter(blocks)
    page = next(rest, b"")
    header = unpack(page)
    place = rank_folder(folder, generation=header.generation, rank=header.rank, ranks=header.ranks)
    make_folder(folder, place, trusted=trusted)
    # Hosts that share a disk have processes of the same number.
    aside = place / f".incoming-{socket.gethostname()}-{os.getpid()}-{header.step:08d}"
    try:
        with aside.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, header.total_bytes)
            for block in chain((page,), rest):
                file.write(block)
        check_share(aside)
        final = place / f"copy-{header.step:08d}"
        os.replace(aside, final)
    finally:
        aside.unlink(missing_ok=True)
    for old in sorted(_paths(place, "copy-*"), key=_step_of_copy)[:-copies]:
        old.unlink(missing_ok=True)
    return final


def check_share(path: Path) -> Header:
    """Read a whole share; its header. Raises ShareDamaged where any of it is not what was written,
    OSError where it cannot be read."""
    header = read_header(path)
    checksum = Checksum()
    with path.open("rb", buffering=0) as file:
        file.seek(PAGE_BYTES)
        description = file.read(header.description_bytes)
        if zlib.crc32(description) != header.description_crc32:
            raise ShareDamaged(f"{path.name}: its description's checksum does not match")
        file.seek(header.payload_begin)
        left = header.payload_bytes
        while left and (block := file.read(min(BLOCK_BYTES, left))):
            checksum.add(block)
            left -= len(block)
    if left or checksum.value() != header.checksum:
        raise ShareDamaged(
            f"{path.name} is damaged: checksum {checksum.value():016x} instead of "
            f"{header.checksum:016x}"
        )
    return header


def remove_older(folder: Path, generation: int, *, but: int = -1) -> None:
    """Delete what starts before `generation` left on this host, less the shares of step `but`."""
    for place in _paths(folder, "generation-*"):
        match = _GENERATION.fullmatch(place.name)
        if not match or int(match[1]) >= generation:
            continue
        if but < 0:
            shutil.rmtree(place, ignore_errors=True)
            continue
        for path in _paths(place, "rank-*/*"):
            if not _holds(path, but):
                path.unlink(missing_ok=True)


def remove_copies(folder: Path, *, but: int) -> None:
    """Delete the copies of all other steps than `but` that were brought to this host."""
    for path in _paths(folder, "generation-*/rank-*/copy-*"):
        if _step_of_copy(path) != but:
            path.unlink(missing_ok=True)


def _paths(folder: Path, pattern: str) -> list[Path]:
    """What is there, less folders that vanish meanwhile: `Path.glob` raises for those."""
    return [folder / name for name in glob(pattern, root_dir=folder, include_hidden=True)]


def _holds(path: Path, step: int) -> bool:
    with contextlib.suppress(ShareDamaged, OSError):
        return read_header(path).step == step
    return False


def clean(folder: Path) -> None:
    """Delete all shares of a run on this host. Processes that still write to them go on unharmed,
    and nobody finds what they write."""
    shutil.rmtree(folder, ignore_errors=True)


def _step_of_copy(path: Path) -> int:
    return int(path.name.removeprefix("copy-"))
