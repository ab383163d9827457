"""Paths as people would type them."""

import os
import shutil
import sys
from pathlib import Path


def shown(path: Path | str) -> str:
    """Relative to the working directory where it lies below that, absolute otherwise."""
    absolute = os.path.abspath(path)
    relative = os.path.relpath(absolute)
    return absolute if relative.startswith("..") else relative


def program_prefix() -> str:
    """What to put before the programs of this environment: nothing where it is activated."""
    beside = Path(sys.executable).with_name("braid")
    if shutil.which("braid") is not None or not beside.exists():
        return ""
    return f"{shown(beside.parent)}/"
