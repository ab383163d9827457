"""A disk that is full while a checkpoint is saved.

Where this process may mount, the run's checkpoints are on a small disk of their own in memory,
which is then filled up. Elsewhere a worker may write no file as large as its share, which a save
meets in the same place with another error. Either ends when the run has told of a failed save.
"""

import errno
import os
import resource
import shutil
import subprocess
import threading
import zlib
from pathlib import Path

import psutil

from cluster.drills.faults import Target
from trainer.checkpoint.folder import list_complete
from trainer.checkpoint.manifest import read_manifest
from trainer.errors import InfrastructureError, ResourceError
from trainer.run_folder import RunFolder, read_lines

_POLL_S = 0.05
_CHUNK = bytes(1 << 20)
_SPARE_BYTES = 64 << 20


class FillDisk:
    """Saves fail until one was told of; then there is room again."""

    def __init__(self) -> None:
        self._folder: RunFolder | None = None
        self.mounted = False
        """Whether the disk is a real one; else a limit stands for it."""

        self._process: psutil.Process | None = None
        self._limits = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._harm = ""

    def prepare(self, undisturbed: RunFolder, folder: RunFolder) -> None:
        """Mount a disk for the checkpoints where that is allowed: called before the run starts."""
        self._folder = folder
        files = undisturbed.checkpoints.rglob("*")
        used_bytes = sum(path.stat().st_size for path in files if path.is_file())
        folder.checkpoints.mkdir(parents=True, exist_ok=True)
        self.mounted = _mount(folder.checkpoints, 2 * used_bytes + _SPARE_BYTES)

    def plant(self, target: Target) -> None:
        """Raises ResourceError where this user can do neither."""
        assert self._folder is not None, "prepare comes first"
        if self.mounted:
            fill(self._filler)
        else:
            self._limit(target.process, largest_file_bytes(self._folder.checkpoints) // 4)
        told = count_failed_saves(self._folder.events)
        self._thread = threading.Thread(target=self._await_failure, args=(told,), daemon=True)
        self._thread.start()

    def remove(self) -> None:
        """Make room, and leave the checkpoints in the run's folder. Raises InfrastructureError
        where a failed save left something half-written, or harmed the checkpoint before it."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        self._make_room()
        if self.mounted and self._folder is not None:
            _unmount(self._folder.checkpoints)
            self.mounted = False
        if self._harm:
            raise InfrastructureError(self._harm)

    def await_room(self, limit_s: float) -> None:
        """Wait until a failed save was told and there is room again."""
        if self._thread is not None:
            self._thread.join(limit_s)

    @property
    def _filler(self) -> Path:
        assert self._folder is not None
        return self._folder.checkpoints / "filler"

    def _limit(self, process: int, num_bytes: int) -> None:
        limited = psutil.Process(process)
        try:
            self._limits = limited.rlimit(psutil.RLIMIT_FSIZE)
            limited.rlimit(psutil.RLIMIT_FSIZE, (num_bytes, self._limits[1]))
        except psutil.AccessDenied as error:
            raise ResourceError(
                f"this user may neither mount a disk nor limit the files of worker {process}, "
                "which belongs to another one: run the drill as the user of the Ray cluster, or as "
                "root"
            ) from error
        self._process = limited

    def _await_failure(self, told: int) -> None:
        assert self._folder is not None
        while not self._over.is_set():
            if count_failed_saves(self._folder.events) > told:
                self._harm = harm_in(self._folder.checkpoints)
                self._make_room()
                return
            self._over.wait(_POLL_S)

    def _make_room(self) -> None:
        if self.mounted:
            self._filler.unlink(missing_ok=True)
        if self._process is not None:
            process, self._process = self._process, None
            if process.is_running():
                process.rlimit(psutil.RLIMIT_FSIZE, self._limits)


def fill(path: Path) -> None:
    """Write to `path` until its disk has no room left."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(_CHUNK)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise


def harm_in(checkpoints: Path) -> str:
    """What a failed save did wrong, in a sentence; empty where the newest checkpoint is whole and
    nothing lies beside it."""
    left = [path.name for path in checkpoints.glob("*.partial*")]
    if left:
        return f"a failed save left {', '.join(sorted(left))} in {checkpoints}"
    for _, folder in list_complete(checkpoints)[:1]:
        for name, entry in read_manifest(folder).files.items():
            data = (folder / name).read_bytes()
            if (len(data), zlib.crc32(data)) != (entry.bytes, entry.crc32):
                return f"a failed save changed {folder / name}"
        return ""
    return f"{checkpoints} has no checkpoint to go back to"


def count_failed_saves(events: Path) -> int:
    """Told so far."""
    return sum(event["kind"] == "checkpoint_failed" for event in read_lines(events))


def largest_file_bytes(checkpoints: Path) -> int:
    """Of the newest checkpoint. Raises InfrastructureError where there is none yet."""
    for _, folder in list_complete(checkpoints)[:1]:
        return max(path.stat().st_size for path in folder.iterdir())
    raise InfrastructureError(
        f"{checkpoints} has no checkpoint yet; let the run save before the fault comes "
        "(checkpoint.rehearse=true), or give a later --at-step"
    )


def _mount(folder: Path, num_bytes: int) -> bool:
    if os.geteuid() != 0:
        return False
    options = f"size={num_bytes},mode=700"
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    # A root without the right to mount, as in most containers, is like any other user.
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _unmount(folder: Path) -> None:
    kept = folder.with_name(f"{folder.name}.kept")
    shutil.copytree(folder, kept)
    done = subprocess.run(["umount", str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise InfrastructureError(
            f"the drill's disk at {folder} is still in use ({done.stderr.strip()}); its content is "
            f"in {kept}. Unmount it yourself: umount {folder}"
        )
    folder.rmdir()
    kept.rename(folder)
