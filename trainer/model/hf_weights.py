"""Weights of a Hugging Face folder into a decoder, and a decoder's into such a folder.

Tensor by tensor: loading reads only the rows that a rank holds, writing holds one shard, so no
process ever has the whole model in memory twice.
"""

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.errors import DataError, RecipeError
from trainer.model.config import Architecture
from trainer.model.fill import Region, fill
from trainer.model.hf_config import read_family
from trainer.model.hf_family import family_of, hf_config
from trainer.model.hf_files import (
    copy_tokenizer,
    open_tensors,
    special_token_ids,
    write_json,
    write_tensors,
)
from trainer.model.hf_names import Piece, pieces_of
from trainer.model.holder import HasDecoder

_NAMED_AT_MOST = 8


def load_hf_weights(model: HasDecoder, folder: Path) -> str:
    """Fill all parameters from `folder`; a sentence with how many tensors were used.

    Every rank of a sharded model calls it. Experts then lie in their order; other buffers are left
    alone. Raises DataError listing
    missing, unexpected and misshapen tensors, and for files that are missing or damaged; no
    parameter has changed then.
    """
    pieces = pieces_of(model.architecture, read_family(folder))
    with open_tensors(folder) as stored:
        _check(folder, pieces, stored, tied=model.architecture.tie_embeddings)
        for name, parameter in model.named_parameters():
            fill(parameter, _Reader(pieces[name], stored, parameter.dtype))
        for name, buffer in model.named_buffers():
            if name.endswith(".expert_slot"):
                buffer.copy_(torch.arange(buffer.numel()))
        used = sum(len(parts) for parts in pieces.values())
        return f"loaded {used} of {len(stored)} tensors from {folder}"


class _Reader:
    """Reads boxes of one of our tensors from the pieces it is stored as."""

    def __init__(self, pieces: list[Piece], stored: Mapping[str, Any], dtype: torch.dtype) -> None:
        self._pieces = pieces
        self._stored = stored
        self._dtype = dtype

    def __call__(self, region: Region) -> Tensor:
        if self._pieces[0].expert is None:
            return self._stored[self._pieces[0].name][region].to(self._dtype)
        out = torch.empty([s.stop - s.start for s in region], dtype=self._dtype)
        experts, rows, columns = region
        for piece in self._pieces:
            assert piece.expert is not None
            first = max(columns.start, piece.first_column)
            last = min(columns.stop, piece.first_column + piece.shape[0])
            if experts.start <= piece.expert < experts.stop and first < last:
                inside = slice(first - piece.first_column, last - piece.first_column)
                values = self._stored[piece.name][inside, rows]
                place = slice(first - columns.start, last - columns.start)
                out[piece.expert - experts.start, :, place] = values.t()
        return out


def _check(
    folder: Path, pieces: Mapping[str, list[Piece]], stored: Mapping[str, Any], *, tied: bool
) -> None:
    wanted = {piece.name: piece.shape for parts in pieces.values() for piece in parts}
    found = {
        "missing": [name for name in wanted if name not in stored],
        "unexpected": [name for name in stored if name not in wanted and not _harmless(name, tied)],
        "with another shape": [
            f"{name} {tuple(stored[name].get_shape())} instead of {shape}"
            for name, shape in wanted.items()
            if name in stored and tuple(stored[name].get_shape()) != shape
        ],
    }
    problems = [
        f"{len(names)} {kind}: {', '.join(names[:_NAMED_AT_MOST])}"
        + (" and more" if len(names) > _NAMED_AT_MOST else "")
        for kind, names in found.items()
        if names
    ]
    if problems:
        raise DataError(
            f"the tensors in {folder} do not fit its config.json; {'; '.join(problems)}"
        )


def _harmless(name: str, tied: bool) -> bool:
    # Old checkpoints store rotary frequencies, and some tied ones the embedding a second time.
    return name.endswith("rotary_emb.inv_freq") or (tied and name == "lm_head.weight")


def write_hf_folder(
    folder: Path,
    architecture: Architecture,
    tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
    *,
    dtype: torch.dtype,
    max_shard_bytes: int,
    tokenizer_folder: Path | None,
) -> None:
    """Write config.json, safetensors shards with their index, and the tokenizer's files.

    `tensors` are whole, under our names, in any order. Everything is written beside `folder` and
    renamed at the end, so a folder that exists is complete. One process calls it.

    Raises RecipeError where no family expresses the architecture or `folder` has content, DataError
    where tensors are missing, unknown or misshapen; then nothing is left.
    """
    family = family_of(architecture)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RecipeError(f"{folder} exists and is not an empty folder; export to a new one")
    config = hf_config(architecture, family) | {"torch_dtype": str(dtype).removeprefix("torch.")}
    if tokenizer_folder is not None:
        config |= special_token_ids(tokenizer_folder)
    staging = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        items = tensors.items() if isinstance(tensors, Mapping) else tensors
        renamed = _renamed(items, pieces_of(architecture, family))
        write_tensors(staging, ((n, t.to("cpu", dtype)) for n, t in renamed), max_shard_bytes)
        write_json(staging / "config.json", config)
        if tokenizer_folder is not None:
            copy_tokenizer(tokenizer_folder, staging)
        os.replace(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _renamed(
    items: Iterable[tuple[str, Tensor]], pieces: Mapping[str, list[Piece]]
) -> Iterator[tuple[str, Tensor]]:
    """Tensors in the names and cuts of Hugging Face; complete, or an error."""
    missing = set(pieces)
    for name, tensor, slot_E in _with_slots(items):
        if name not in missing:
            raise DataError(f"tensor {name!r} is not of this architecture, or is given twice")
        missing.remove(name)
        for piece in pieces[name]:
            part = _cut(tensor, piece, slot_E)
            if tuple(part.shape) != piece.shape:
                raise DataError(
                    f"tensor {name!r} gives {piece.name} the shape {tuple(part.shape)} instead of "
                    f"{piece.shape}; it is of another architecture"
                )
            yield piece.name, part
    if missing:
        raise DataError(f"tensors are missing: {', '.join(sorted(missing))}")


def _with_slots(
    items: Iterable[tuple[str, Tensor]],
) -> Iterator[tuple[str, Tensor, list[int] | None]]:
    """Parameters, stacked experts with the place of each expert in the stack (None: in order).

    Stacks that come before their layer's places are held back until those come: give buffers first
    where memory is scarce.
    """
    slots: dict[str, list[int]] = {}
    held: dict[str, Tensor] = {}
    for name, tensor in items:
        layer, _, stacked = name.rpartition(".experts.")
        if name.endswith(".expert_bias"):
            # No family with experts has one; `family_of` refused architectures that move it.
            continue
        if stacked == "expert_slot":
            slots[layer] = tensor.tolist()
            ready = [held_name for held_name in held if held_name.startswith(f"{layer}.")]
            yield from ((other, held.pop(other), slots[layer]) for other in ready)
        elif stacked and layer not in slots:
            held[name] = tensor
        else:
            yield name, tensor, slots.get(layer)
    yield from ((name, tensor, None) for name, tensor in held.items())


def _cut(tensor: Tensor, piece: Piece, slot_E: list[int] | None) -> Tensor:
    if piece.expert is None:
        return tensor
    columns = slice(piece.first_column, piece.first_column + piece.shape[0])
    row = piece.expert if slot_E is None else slot_E[piece.expert]
    return tensor[row][:, columns].t()
