"""The files of a Hugging Face folder: safetensors shards with their index, and the tokenizer's."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from trainer.errors import DataError, ResourceError

_SINGLE_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)


@contextmanager
def open_tensors(folder: Path) -> Iterator[dict[str, Any]]:
    """Tensor name to lazy slice over all files of a folder, which are open inside the context.

    Raises DataError for files that are missing or damaged.
    """
    with ExitStack() as stack:
        stored: dict[str, Any] = {}
        for path in _files(folder):
            try:
                file = stack.enter_context(safe_open(path, framework="pt"))
                stored.update((name, file.get_slice(name)) for name in file.keys())  # noqa: SIM118
            except FileNotFoundError as error:
                raise DataError(f"{path} is missing; the model folder is incomplete") from error
            except (OSError, SafetensorError) as error:
                raise DataError(f"{path} is not a readable safetensors file: {error}") from error
        yield stored


def _files(folder: Path) -> list[Path]:
    index = folder / _INDEX_FILE
    if not index.exists():
        return [folder / _SINGLE_FILE]
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{index} is not a safetensors index: {error}") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise DataError(f"{index} names {name!r}, which is not a file of its own folder")
    return [folder / name for name in names]


def write_tensors(folder: Path, items: Iterable[tuple[str, Tensor]], max_shard_bytes: int) -> None:
    """Write tensors on the CPU as one file, or as shards with an index.

    Raises ResourceError where the disk does not take them.
    """
    shards: list[list[str]] = []
    total_bytes = 0
    for shard in _shards(items, max_shard_bytes):
        try:
            save_file(shard, folder / f"{len(shards)}.part", metadata={"format": "pt"})
        except (OSError, SafetensorError) as error:
            raise ResourceError(f"{folder} cannot be written: {error}; free space there") from error
        total_bytes += sum(tensor.nbytes for tensor in shard.values())
        shards.append(list(shard))
    if len(shards) == 1:
        os.replace(folder / "0.part", folder / _SINGLE_FILE)
        return
    weight_map: dict[str, str] = {}
    # Names carry the number of shards, which is known only now.
    for i, names in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        os.replace(folder / f"{i}.part", folder / file)
        weight_map.update(dict.fromkeys(names, file))
    write_json(
        folder / _INDEX_FILE,
        {"metadata": {"total_size": total_bytes}, "weight_map": weight_map},
    )


def _shards(
    items: Iterable[tuple[str, Tensor]], max_shard_bytes: int
) -> Iterator[dict[str, Tensor]]:
    """Consecutive tensors up to the limit; a larger tensor is alone."""
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in items:
        if shard and size + tensor.nbytes > max_shard_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor.contiguous()
        size += tensor.nbytes
    yield shard


def special_token_ids(tokenizer_folder: Path) -> dict[str, int]:
    """Ids of the tokenizer's begin, end and padding tokens, as config.json names them."""
    settings = _read_json(tokenizer_folder / "tokenizer_config.json")
    added = _read_json(tokenizer_folder / "tokenizer.json").get("added_tokens", [])
    ids = {token["content"]: token["id"] for token in added}
    found = {}
    for kind in ("bos", "eos", "pad"):
        token = settings.get(f"{kind}_token")
        text = token.get("content") if isinstance(token, dict) else token
        if text in ids:
            found[f"{kind}_token_id"] = ids[text]
    return found


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer's files that are there."""
    for name in _TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write_json(path: Path, value: object) -> None:
    """Write one indented JSON document."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
