"""What runs left in this machine's memory, and how it is freed."""

import json
import shutil
import socket
from pathlib import Path

from cluster.memory_folder import folders_in_memory, held_bytes
from cluster.run_lock import held
from recipes.load import load_recipe
from trainer.errors import RecipeError
from trainer.run_folder import RunFolder


def kept_in_memory(folder: RunFolder) -> dict[Path, int]:
    """What a run holds in the memory of this host: bytes by folder.

    Raises RecipeError where the folder is no run's.
    """
    if not folder.recipe.exists():
        raise RecipeError(f"{folder.root} is no run folder: recipe.yaml is missing; see `ls runs`")
    keep_dir = load_recipe(str(folder.recipe), []).recipe.keep.dir
    found = folders_in_memory(folder.root, keep_dir)
    return {path: held_bytes(path) for path in found if path.is_dir()}


def clean(folder: RunFolder) -> dict[Path, int]:
    """Free it; what was freed. Raises RecipeError while a driver runs there."""
    found = kept_in_memory(folder)
    with held(folder):
        for path in found:
            shutil.rmtree(path, ignore_errors=True)
    return found


def other_hosts(folder: RunFolder) -> list[str]:
    """Hosts of the run's last start that are not this one."""
    if not folder.info.exists():
        return []
    hosts = json.loads(folder.info.read_text()).get("hosts", [])
    return sorted({host["host"] for host in hosts} - {socket.gethostname()})
