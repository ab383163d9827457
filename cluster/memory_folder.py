"""Where a run keeps what outlives its processes but not its host: files in the host's memory."""

import hashlib
import tempfile
from pathlib import Path

from trainer.keeping.folder import run_folder_in_memory

_SHARED_MEMORY = Path("/dev/shm")


def memory_folder(run_folder: Path) -> Path:
    """The same on every host, and for every start of the run; not made here."""
    base = _SHARED_MEMORY if _SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir())
    name = hashlib.sha256(str(run_folder).encode()).hexdigest()[:12]
    return base / f"braid-{run_folder.name}-{name}"


def folders_in_memory(run_folder: Path, keep_dir: str) -> list[Path]:
    """All that a run may keep in the memory of a host: what ranks tell, and snapshots."""
    kept = run_folder_in_memory(keep_dir, name=run_folder.name, run_root=run_folder)
    return [memory_folder(run_folder), kept]


def held_bytes(folder: Path) -> int:
    """Memory that a folder takes; 0 where there is none."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sum(path.stat().st_blocks * 512 for path in files)
