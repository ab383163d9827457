"""Fill tensors of any layout from stored blocks, wherever these lie."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from torch import Tensor
from torch.distributed import ProcessGroup

from trainer.checkpoint.boxes import boxes_of, overlap
from trainer.checkpoint.manifest import Manifest, TensorEntry, stored_name
from trainer.checkpoint.share import Outline, State, local_part

_NAMES_SHOWN = 4


class BlockReader(Protocol):
    """Where blocks of stored tensors are read."""

    def read(
        self, file: str, name: str, offsets: tuple[int, ...], lengths: tuple[int, ...]
    ) -> Tensor:
        """A block of the tensor stored as `name` in `file`, in host memory. Raises ValueError or
        OSError where it cannot be read."""


class Source(Protocol):
    """A whole state that a run may go on from."""

    @property
    def path(self) -> Path:
        """Where it is, for messages and events."""

    @property
    def place(self) -> str:
        """What holds it: `disk` or `memory`."""

    def prepare(self, state: State, group: ProcessGroup | None) -> Manifest:
        """Make sure that everything is whole and that this rank can read what `state` needs of it.

        All ranks of `group` call it alike. Raises RanksFailed on all of them where that is not so.
        """

    def opened(self) -> AbstractContextManager[BlockReader]:
        """What `prepare` found, for reading."""


def fill(state: State, stored: Mapping[str, TensorEntry], reader: BlockReader) -> None:
    """Fill this rank's part of every tensor in place."""
    for name, tensor in state.items():
        fill_tensor(name, tensor, stored[name], reader)


def fill_tensor(name: str, tensor: Tensor, entry: TensorEntry, reader: BlockReader) -> None:
    """Fill this rank's part of one tensor in place."""
    local = local_part(tensor)
    for box in boxes_of(tensor):
        for chunk in entry.chunks:
            if common := overlap(box, chunk.offsets, chunk.shape):
                start = tuple(a - b for a, b in zip(common.offsets, chunk.offsets, strict=True))
                name_there = stored_name(name, chunk.part)
                common.of(local).copy_(reader.read(chunk.file, name_there, start, common.shape))


def files_needed(state: State, stored: Mapping[str, TensorEntry]) -> set[str]:
    """The files from which `fill` reads; tensors that are not stored need none."""
    return {
        chunk.file
        for name, tensor in state.items()
        if name in stored
        for box in boxes_of(tensor)
        for chunk in stored[name].chunks
        if overlap(box, chunk.offsets, chunk.shape)
    }


def nothing(_name: str) -> bool:
    """No stored tensor is spare."""
    return False


def differences(
    outline: Outline,
    stored: Mapping[str, TensorEntry],
    spare: Callable[[str], bool] = nothing,
) -> list[str]:
    """How the tensors of all ranks differ from the stored ones, with some examples. Names that are
    `spare` may be stored and not asked for."""
    missing = [name for name in outline if name not in stored]
    extra = [name for name in stored if name not in outline and not spare(name)]
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
