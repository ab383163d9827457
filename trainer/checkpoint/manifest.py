"""What a checkpoint holds, as manifest.json says it. Neither torch nor ray.

    {"version": 1, "step": 100,
     "files": {FILE: {"bytes": N, "crc32": C}},
     "tensors": {NAME: {"dtype": "F32", "shape": [...],
                        "chunks": [{"file": FILE, "offsets": [...], "shape": [...], "part": 0}]}},
     "meta": {...}, "crc32": C}

`dtype` is a safetensors type code. A chunk is the block of the tensor that starts at `offsets`; in
its file it is stored under the tensor's name, with `#part` behind it from the second one of a
tensor on. `meta` is the caller's. The last field is the CRC-32
of the document without it, so that a damaged manifest is told from a valid one.
"""

import json
import os
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer.checkpoint.folder import MANIFEST_NAME

VERSION = 1


@dataclass(frozen=True)
class FileEntry:
    """Size and checksum of one data file."""

    bytes: int
    crc32: int


@dataclass(frozen=True)
class Chunk:
    """Where one block of a tensor lies."""

    file: str
    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    part: int = 0
    """Which of the tensor's blocks in that file it is."""


def stored_name(name: str, part: int) -> str:
    """Under which name a tensor's block number `part` stands in a data file."""
    return f"{name}#{part}" if part else name


@dataclass(frozen=True)
class TensorEntry:
    """Type, global shape and blocks of one tensor; a tensor without elements has no blocks."""

    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A whole checkpoint."""

    step: int
    files: dict[str, FileEntry]
    tensors: dict[str, TensorEntry]
    meta: dict[str, Any]


def encode_tensors(tensors: dict[str, TensorEntry]) -> str:
    """The `tensors` field. It is the longest and stays the same from save to save."""
    return _json({name: asdict(entry) for name, entry in tensors.items()})


def encode(*, step: int, files: dict[str, FileEntry], tensors_json: str, meta_json: str) -> str:
    """The text of manifest.json."""
    files_json = _json({name: asdict(entry) for name, entry in files.items()})
    text = (
        f'{{"version":{VERSION},"step":{step},"files":{files_json},'
        f'"tensors":{tensors_json},"meta":{meta_json}}}'
    )
    return f'{text[:-1]},"crc32":{zlib.crc32(text.encode())}}}\n'


def decode(text: str) -> Manifest:
    """The manifest in `text`. Raises ValueError where it is damaged or of an unknown version."""
    body, separator, tail = text.rstrip().rpartition(',"crc32":')
    digits = tail.removesuffix("}")
    if not separator or not digits.isdecimal() or zlib.crc32(f"{body}}}".encode()) != int(digits):
        raise ValueError(f"{MANIFEST_NAME} is damaged: its checksum does not match")
    document = json.loads(f"{body}}}")
    if document["version"] != VERSION:
        raise ValueError(
            f"{MANIFEST_NAME} has version {document['version']}, this Braid reads {VERSION}; "
            "load it with the Braid that wrote it"
        )
    return Manifest(
        step=document["step"],
        files={name: FileEntry(**entry) for name, entry in document["files"].items()},
        tensors={name: _tensor(entry) for name, entry in document["tensors"].items()},
        meta=document["meta"],
    )


def read_manifest(path: Path) -> Manifest:
    """The manifest of the checkpoint folder `path`. Raises OSError, or ValueError if damaged."""
    # Damage may turn ASCII into bytes that are not text; the checksum then says so.
    return decode((path / MANIFEST_NAME).read_text(encoding="utf-8", errors="replace"))


def write_manifest(path: Path, text: str) -> None:
    """Write manifest.json into the folder `path`, and wait until it is on disk."""
    with (path / MANIFEST_NAME).open("x", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _tensor(entry: dict[str, Any]) -> TensorEntry:
    chunks = tuple(
        Chunk(chunk["file"], tuple(chunk["offsets"]), tuple(chunk["shape"]), chunk.get("part", 0))
        for chunk in entry["chunks"]
    )
    return TensorEntry(entry["dtype"], tuple(entry["shape"]), chunks)
