"""What this machine has, looked up; judging it is recipes/doctor.py's part."""

import os
import platform
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from cluster.memory_folder import held_bytes

SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Facts about one machine. Sizes are None where the system does not tell."""

    python: str
    packages: Mapping[str, str | None]
    """Installed version by name; None where it is missing."""

    cores: int
    memory_bytes: int
    shared_memory_bytes: int | None
    """Free space of /dev/shm, where Ray keeps objects."""

    run_memory_bytes: int
    """What runs, over or not, hold in shared memory."""

    run_dir: str
    run_dir_writable: bool
    run_dir_free_bytes: int
    devices: tuple[str, ...]
    """Name and memory of each GPU."""

    torch_problem: str | None
    """Why torch does not import, if it does not."""

    ray_auth_mode: str | None
    """RAY_AUTH_MODE, if set."""

    ray_token: bool
    """Whether a Ray token is at hand."""

    ray_address: str | None
    """RAY_ADDRESS, if set."""


def look_at(
    *, packages: Iterable[str], run_dir: Path, environ: Mapping[str, str], home: Path
) -> Machine:
    """Look at the machine this runs on. Nothing is changed or started."""
    existing = _nearest_existing(run_dir.expanduser().absolute())
    devices, torch_problem = _devices()
    return Machine(
        python=platform.python_version(),
        packages={name: installed_version(name) for name in packages},
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        shared_memory_bytes=(
            shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else None
        ),
        run_memory_bytes=sum(held_bytes(path) for path in SHARED_MEMORY.glob("braid-*")),
        run_dir=str(run_dir),
        run_dir_writable=os.access(existing, os.W_OK | os.X_OK) and existing.is_dir(),
        run_dir_free_bytes=shutil.disk_usage(existing).free,
        devices=devices,
        torch_problem=torch_problem,
        ray_auth_mode=environ.get("RAY_AUTH_MODE"),
        ray_token=_has_token(environ, home),
        ray_address=environ.get("RAY_ADDRESS"),
    )


def installed_version(package: str) -> str | None:
    """Version of an installed package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _nearest_existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _has_token(environ: Mapping[str, str], home: Path) -> bool:
    if environ.get("RAY_AUTH_TOKEN"):
        return True
    return Path(environ.get("RAY_AUTH_TOKEN_PATH", home / ".ray" / "auth_token")).is_file()


def _devices() -> tuple[tuple[str, ...], str | None]:
    try:
        import torch  # Seconds to import, and may be what is broken.
    except (ImportError, OSError) as error:
        return (), str(error)
    names = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        names.append(f"{properties.name}, {properties.total_memory / 1024**3:.0f} GiB")
    return tuple(names), None
