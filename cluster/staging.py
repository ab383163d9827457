"""The working directory of a submitted run: our own code and one recipe, and nothing else.

Guarantees, each asserted in tests/cluster/test_staging.py:
- only Python files of our packages and the YAML and JSON files of `recipes` are taken;
- the recipe lies beside them as recipe.yaml;
- the list that is shown is the list that is copied.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("cluster", "comms", "offload", "parallel", "recipes", "trainer")
RECIPE = "recipe.yaml"

_SUFFIXES = {"recipes": (".py", ".yaml", ".json")}


@dataclass(frozen=True, kw_only=True)
class StagedFile:
    """One file of the working directory."""

    path: Path
    """Relative to the root of the source tree."""

    size_bytes: int


def source_root() -> Path:
    """The folder that holds our packages."""
    return Path(__file__).resolve().parents[1]


def list_sources(root: Path) -> list[StagedFile]:
    """Files to take, sorted. A package that is not there is left out."""
    files = []
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*")):
            if path.is_file() and path.suffix in _SUFFIXES.get(package, (".py",)):
                size = path.stat().st_size
                files.append(StagedFile(path=path.relative_to(root), size_bytes=size))
    return files


def stage(files: Sequence[StagedFile], root: Path, target: Path, recipe_text: str) -> None:
    """Copy the files from `root` to `target` and write the recipe there."""
    for file in files:
        copy = target / file.path
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / file.path, copy)
    (target / RECIPE).write_text(recipe_text, encoding="utf-8")


def summary(files: Sequence[StagedFile]) -> str:
    """What is sent: number and size of files per package, and the whole."""
    lines = []
    for package in PACKAGES:
        own = [file for file in files if file.path.parts[0] == package]
        if own:
            lines.append(f"  {package}/  {len(own)} files, {_kib(own)}")
    total = f"working directory: {len(files)} files and {RECIPE}, {_kib(files)}"
    return "\n".join([total, *lines])


def _kib(files: Sequence[StagedFile]) -> str:
    return f"{sum(file.size_bytes for file in files) / 1024:.0f} KiB"
