"""Where a run keeps what outlives its processes but not its host: files in the host's memory."""

import hashlib
import tempfile
from pathlib import Path

_SHARED_MEMORY = Path("/dev/shm")


def memory_folder(run_folder: Path) -> Path:
    """The same on every host, and for every start of the run; not made here."""
    base = _SHARED_MEMORY if _SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir())
    name = hashlib.sha256(str(run_folder).encode()).hexdigest()[:12]
    return base / f"braid-{run_folder.name}-{name}"
