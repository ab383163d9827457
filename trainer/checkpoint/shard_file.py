"""One rank's data file in the safetensors format, written with its checksum.

Layout (https://github.com/huggingface/safetensors, "Format"): eight bytes of header length, a JSON
header, the tensors' bytes without gaps. Entries are ordered by falling element size, so that every
tensor is aligned to its type.
"""

import json
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch

from trainer.checkpoint.boxes import Box
from trainer.checkpoint.manifest import FileEntry, stored_name

BLOCK_BYTES = 1024 * 1024
"""Bytes summed and written at a time: few enough to be still in cache for the write."""

DTYPE_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
DTYPES = {code: dtype for dtype, code in DTYPE_CODES.items()}


@dataclass(frozen=True)
class Piece:
    """One block of a tensor, and its byte range behind the header of the file."""

    name: str
    part: int
    """Which of the tensor's blocks in this file it is."""

    dtype: torch.dtype
    box: Box
    begin: int
    end: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the block."""
        return self.box.shape


def dtype_code(name: str, dtype: torch.dtype) -> str:
    """The safetensors code of `dtype`. Raises ValueError for a type that cannot be stored."""
    if dtype not in DTYPE_CODES:
        stored = ", ".join(str(known) for known in DTYPE_CODES)
        raise ValueError(f"tensor {name} has dtype {dtype}; checkpoints store {stored}")
    return DTYPE_CODES[dtype]


def lay_out(blocks: list[tuple[str, int, torch.dtype, Box]]) -> list[Piece]:
    """Name, part, dtype and box of each block to its place in the file."""
    pieces, begin = [], 0
    for name, part, dtype, box in sorted(blocks, key=lambda b: (-b[2].itemsize, b[0], b[1])):
        end = begin + torch.Size(box.shape).numel() * dtype.itemsize
        pieces.append(Piece(name, part, dtype, box, begin, end))
        begin = end
    return pieces


def header_of(pieces: list[Piece]) -> bytes:
    """What precedes the data, length field included; a multiple of eight bytes."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    for piece in pieces:
        entries[stored_name(piece.name, piece.part)] = {
            "dtype": dtype_code(piece.name, piece.dtype),
            "shape": list(piece.shape),
            "data_offsets": [piece.begin, piece.end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_shard(path: Path, header: bytes, payload: memoryview) -> FileEntry:
    """Write a new file and wait until it is on disk. `payload` is a view of bytes.

    Raises OSError, for example FileExistsError, or ENOSPC where the disk is full.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        crc32 = _write_block(descriptor, memoryview(header), 0)
        for begin in range(0, len(payload), BLOCK_BYTES):
            crc32 = _write_block(descriptor, payload[begin : begin + BLOCK_BYTES], crc32)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return FileEntry(len(header) + len(payload), crc32)


def check_file(path: Path, expected: FileEntry) -> None:
    """Read the whole file. Raises ValueError where size or checksum differ, OSError if missing."""
    found = path.stat().st_size
    if found != expected.bytes:
        raise ValueError(f"{path.name} has {found} bytes instead of {expected.bytes}")
    crc32, block = 0, bytearray(BLOCK_BYTES)
    view = memoryview(block)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            crc32 = zlib.crc32(view[:count], crc32)
    if crc32 != expected.crc32:
        raise ValueError(
            f"{path.name} is damaged: CRC-32 {crc32:08x} instead of {expected.crc32:08x}"
        )


def _write_block(descriptor: int, block: memoryview, crc32: int) -> int:
    crc32 = zlib.crc32(block, crc32)
    while len(block):
        block = block[os.write(descriptor, block) :]
    return crc32
