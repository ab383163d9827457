"""Choose a checkpoint that is whole, and read it into any layout.

Guarantees, each asserted in tests/trainer/checkpoint/test_loading.py:
- no byte of a file is used whose size or checksum is not the manifest's;
- all ranks take the same checkpoint, and know the same reasons for those passed over;
- a state that differs from the checkpoint in names, types or shapes is refused before any of it
  changes;
- whatever the number of ranks and the placements, every element is the one that was saved.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
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
from trainer.checkpoint.filling import (
    BlockReader,
    Source,
    differences,
    fill,
    fill_tensor,
    nothing,
)
from trainer.checkpoint.manifest import Manifest, read_manifest
from trainer.checkpoint.shard_file import DTYPES, check_file
from trainer.checkpoint.share import State, joined_outline, outline_of
from trainer.errors import DataError, RecipeError

Skipped = tuple[tuple[Path, str], ...]
"""Checkpoints passed over, and why."""


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A state that is whole."""

    source: Source
    manifest: Manifest
    skipped: Skipped

    @property
    def path(self) -> Path:
        """Where it is, for messages and events."""
        return self.source.path


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What was loaded."""

    step: int
    path: Path
    place: str
    """What held it: `disk` or `memory`."""

    meta: dict[str, Any]
    skipped: Skipped


class StepFolder:
    """A checkpoint on disk; a `Source`."""

    place = "disk"

    def __init__(self, path: Path) -> None:
        self.path = path

    def prepare(self, state: State, group: ProcessGroup | None) -> Manifest:
        """Compare sizes and checksums of all files; ranks share the reading."""
        return agree(group, f"checking {self.path.name}", partial(_check, self.path, group))

    def opened(self) -> AbstractContextManager[BlockReader]:
        """Its data files."""
        return _opened(self.path)


def load(state: State, candidates: Sequence[Path], group: ProcessGroup | None) -> Loaded:
    """Fill `state` in place from the first of `candidates` that is whole.

    All ranks of `group`, which carries CPU tensors, call it; rank 0's candidates count. Raises
    RecipeError where the checkpoint is of another model, DataError where none can be loaded.
    """
    paths = exchange(group, [str(path) for path in candidates])[0]
    return load_first(state, [StepFolder(Path(path)) for path in paths], group)


def load_first(
    state: State,
    sources: Sequence[Source],
    group: ProcessGroup | None,
    *,
    spare: Callable[[str], bool] = nothing,
) -> Loaded:
    """As `load`, from sources of any kind, which all ranks give alike. They may have `spare`
    tensors that no rank asks for."""
    return load_chosen(state, choose(state, sources, group), group, spare=spare)


def load_chosen(
    state: State,
    chosen: Chosen,
    group: ProcessGroup | None,
    *,
    spare: Callable[[str], bool] = nothing,
) -> Loaded:
    """As `load_first`, from what was chosen."""
    source, manifest, path = chosen.source, chosen.manifest, chosen.path
    outlines = agree_all(group, f"comparing with {path.name}", lambda: outline_of(state))
    problems = differences(joined_outline(outlines), manifest.tensors, spare)
    if problems:
        raise RecipeError(
            f"{path} is a checkpoint of another model: {'; '.join(problems)}. "
            "Use the model section it was saved with, or another run.name to start afresh"
        )
    try:
        agree(group, f"reading {path.name}", lambda: _fill_from(source, state, manifest))
    except RanksFailed as failure:
        raise DataError(f"{path} could not be read after it was checked: {failure}") from failure
    return Loaded(
        step=manifest.step,
        path=path,
        place=source.place,
        meta=manifest.meta,
        skipped=chosen.skipped,
    )


def choose_loadable(candidates: Sequence[Path], group: ProcessGroup | None) -> Chosen:
    """The first of `candidates` whose files all have the size and checksum of its manifest.

    All ranks of `group` call it and share the reading; rank 0's candidates count. Raises DataError
    where there is none.
    """
    paths = exchange(group, [str(path) for path in candidates])[0]
    return choose({}, [StepFolder(Path(path)) for path in paths], group)


def choose(state: State, sources: Sequence[Source], group: ProcessGroup | None) -> Chosen:
    """The first of `sources`, which all ranks of `group` give alike, that is whole, ready for this
    rank to fill `state` from. Under other names a state is filled from a step folder alone: it has
    all of a checkpoint, but a snapshot gathers what `state` asks for.

    Raises DataError where none is whole.
    """
    skipped: list[tuple[Path, str]] = []
    for source in sources:
        try:
            manifest = source.prepare(state, group)
        except RanksFailed as failure:
            skipped.append((source.path, str(failure)))
        else:
            return Chosen(source=source, manifest=manifest, skipped=tuple(skipped))
    reasons = "".join(f"\n  {path}: {reason}" for path, reason in skipped) or " there is none"
    raise DataError(
        f"no checkpoint can be loaded:{reasons}\n"
        "Restore one of them, or start afresh with another run.name"
    )


def _fill_from(source: Source, state: State, manifest: Manifest) -> None:
    with source.opened() as reader:
        fill(state, manifest.tensors, reader)


def read_tensors(path: Path, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Name and whole tensor, on CPU, of everything in the step folder `path` under `prefix`.

    One tensor is in memory at a time. Checksums are the business of `choose_loadable`. Raises
    DataError where a file cannot be read.
    """
    try:
        manifest = read_manifest(path)
        with _opened(path) as files:
            for name, entry in manifest.tensors.items():
                if name.startswith(prefix):
                    tensor = torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
                    fill_tensor(name, tensor, entry, files)
                    yield name, tensor
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {describe(error)}") from error


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


@contextmanager
def _opened(path: Path) -> Iterator[_Files]:
    with ExitStack() as stack:
        yield _Files(path, stack)
