"""Paths as people would type them."""

import os
from pathlib import Path


def shown(path: Path | str) -> str:
    """Relative to the working directory where it lies below that, absolute otherwise."""
    absolute = os.path.abspath(path)
    relative = os.path.relpath(absolute)
    return absolute if relative.startswith("..") else relative
