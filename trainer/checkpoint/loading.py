"""Choose a checkpoint that is whole, and read it into any layout.

Guarantees, each asserted in tests/trainer/checkpoint/test_loading.py:
- no byte of a file is used whose size or checksum is not the manifest's;
- all ranks take the same checkpoint, and know the same reasons for those passed over;
- a state that differs from the checkpoint in names, types or shapes is refused before any of it
  changes;
- whatever the number of ranks and the placements, every element is the one that was saved.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed import ProcessGroup

from trainer.checkpoint.agreement import (
    RanksFailed,
    agree,
    agree_all,
    describe,
    exchange,
    rank_of,
    size_of,
)
from trainer.checkpoint.boxes import boxes_of, overlap
from trainer.checkpoint.manifest import Manifest, TensorEntry, read_manifest, stored_name
from trainer.checkpoint.shard_file import DTYPES, check_file
from trainer.checkpoint.share import Outline, State, joined_outline, local_part, outline_of
from trainer.errors import DataError, RecipeError

_NAMES_SHOWN = 4

Skipped = tuple[tuple[Path, str], ...]
"""Checkpoints passed over, and why."""


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A checkpoint whose files are whole."""

    path: Path
    manifest: Manifest
    skipped: Skipped


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What was loaded."""

    step: int
    path: Path
    meta: dict[str, Any]
    skipped: Skipped


def load(
    state: State, candidates: Sequence[Path], group: ProcessGroup | None, *, apart: str = "\0"
) -> Loaded:
    """Fill `state` in place from the first of `candidates` that is whole.

    All ranks of `group`, which carries CPU tensors, call it; rank 0's candidates count. What the
    checkpoint holds under names that begin with `apart` need not be in the state. Raises
    RecipeError where the checkpoint is of another model, DataError where none can be loaded.
    """
    chosen = choose_loadable(candidates, group)
    path, manifest = chosen.path, chosen.manifest
    outlines = agree_all(group, f"comparing with {path.name}", lambda: outline_of(state))
    problems = differences(joined_outline(outlines), manifest, apart=apart)
    if problems:
        raise RecipeError(
            f"{path} is a checkpoint of another model: {'; '.join(problems)}. "
            "Use the model section it was saved with, or another run.name to start afresh"
        )
    try:
        agree(group, f"reading {path.name}", lambda: fill(state, path, manifest))
    except RanksFailed as failure:
        raise DataError(f"{path} could not be read after it was checked: {failure}") from failure
    return Loaded(step=manifest.step, path=path, meta=manifest.meta, skipped=chosen.skipped)


def choose_loadable(candidates: Sequence[Path], group: ProcessGroup | None) -> Chosen:
    """The first of `candidates` whose files all have the size and checksum of its manifest.

    All ranks of `group` call it and share the reading; rank 0's candidates count. Raises DataError
    where there is none.
    """
    skipped: list[tuple[Path, str]] = []
    for path in map(Path, exchange(group, [str(path) for path in candidates])[0]):
        try:
            manifest = agree(group, f"checking {path.name}", partial(_check, path, group))
        except RanksFailed as failure:
            skipped.append((path, str(failure)))
        else:
            return Chosen(path=path, manifest=manifest, skipped=tuple(skipped))
    reasons = "".join(f"\n  {path}: {reason}" for path, reason in skipped) or " there is none"
    raise DataError(
        f"no checkpoint can be loaded:{reasons}\n"
        "Restore one of them, or start afresh with another run.name"
    )


def read_tensors(path: Path, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Name and whole tensor, on CPU, of everything in the step folder `path` under `prefix`.

    One tensor is in memory at a time. Checksums are the business of `choose_loadable`. Raises
    DataError where a file cannot be read.
    """
    try:
        manifest = read_manifest(path)
        with ExitStack() as stack:
            files = _Files(path, stack)
            for name, entry in manifest.tensors.items():
                if name.startswith(prefix):
                    tensor = torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
                    _fill_one(name, tensor, entry, files)
                    yield name, tensor
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {describe(error)}") from error


def differences(outline: Outline, manifest: Manifest, *, apart: str = "\0") -> list[str]:
    """How the tensors of all ranks differ from the checkpoint, with some examples; those whose
    names begin with `apart` are not looked at."""
    stored = {n: entry for n, entry in manifest.tensors.items() if not n.startswith(apart)}
    missing = [name for name in outline if name not in stored]
    extra = [name for name in stored if name not in outline]
    reshaped = [
        f"{name} is {_form(entry.dtype, entry.shape)} in the checkpoint and "
        f"{_form(*outline[name])} here"
        for name, entry in stored.items()
        if name in outline and [entry.dtype, list(entry.shape)] != outline[name]
    ]
    total = len(outline)
    problems = []
    if missing:
        problems.append(f"{len(missing)} of {total} tensors are not in it: {_some(missing)}")
    if extra:
        problems.append(f"{len(extra)} of its tensors are not in the model: {_some(extra)}")
    if reshaped:
        problems.append(f"{len(reshaped)} of {total} tensors differ: {_some(reshaped)}")
    return problems


def _some(names: list[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _form(code: str, shape: Sequence[int]) -> str:
    return f"{code}{list(shape)}"


def _check(path: Path, group: ProcessGroup | None) -> Manifest:
    """Read the manifest, and this rank's part of the files."""
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not a folder that this rank sees")
    manifest = read_manifest(path)
    for name in sorted(manifest.files)[rank_of(group) :: size_of(group)]:
        check_file(path / name, manifest.files[name])
    return manifest


class _Files:
    """Data files of one checkpoint, opened when first needed."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self._path = path
        self._stack = stack
        self._open: dict[str, Any] = {}

    def read(
        self, file: str, name: str, offsets: tuple[int, ...], lengths: tuple[int, ...]
    ) -> Tensor:
        """A block of the tensor stored as `name` in `file`."""
        try:
            if file not in self._open:
                opened = safe_open(self._path / file, framework="pt")
                self._open[file] = self._stack.enter_context(opened)
            if not lengths:
                return self._open[file].get_tensor(name)
            block = tuple(slice(o, o + n) for o, n in zip(offsets, lengths, strict=True))
            return self._open[file].get_slice(name)[block]
        except SafetensorError as error:
            raise ValueError(f"{file}, {name}: {error}") from error


def fill(state: State, path: Path, manifest: Manifest) -> None:
    """Fill `state` in place from the step folder `path`, which was checked and holds all of it.

    Raises OSError or ValueError where it cannot be read.
    """
    with ExitStack() as stack:
        files = _Files(path, stack)
        for name, tensor in state.items():
            _fill_one(name, tensor, manifest.tensors[name], files)


def _fill_one(name: str, tensor: Tensor, entry: TensorEntry, files: _Files) -> None:
    local = local_part(tensor)
    for box in boxes_of(tensor):
        for chunk in entry.chunks:
            if common := overlap(box, chunk.offsets, chunk.shape):
                start = tuple(a - b for a, b in zip(common.offsets, chunk.offsets, strict=True))
                stored = stored_name(name, chunk.part)
                common.of(local).copy_(files.read(chunk.file, stored, start, common.shape))
