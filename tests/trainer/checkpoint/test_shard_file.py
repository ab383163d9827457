"""Data files are valid safetensors, checksummed as written."""

import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.trainer.checkpoint.worlds import corrupt, whole_state
from trainer.checkpoint.boxes import Box
from trainer.checkpoint.manifest import FileEntry
from trainer.checkpoint.shard_file import BLOCK_BYTES, check_file, header_of, lay_out, write_shard
from trainer.checkpoint.share import plan_share
from trainer.checkpoint.staging import StagingBuffer


def test_safetensors_reads_the_file(tmp_path: Path) -> None:
    state = whole_state(0)
    share = plan_share(state, None)
    staged = StagingBuffer().stage(share, state)
    write_shard(tmp_path / "x", header_of(share.pieces), staged.payload)
    found = load_file(tmp_path / "x")
    assert found.keys() == state.keys() - {"model.none"}
    assert all(torch.equal(found[name], state[name]) for name in found)


def test_every_tensor_is_aligned_to_its_type() -> None:
    blocks = [
        (name, 0, dtype, Box((0,), (size,), (0,)))
        for name, dtype, size in (
            ("a", torch.uint8, 3),
            ("b", torch.float64, 1),
            ("c", torch.bfloat16, 5),
        )
    ]
    pieces = lay_out(blocks)
    assert [piece.name for piece in pieces] == ["b", "c", "a"]
    assert all(piece.begin % piece.dtype.itemsize == 0 for piece in pieces)
    assert [piece.begin for piece in pieces[1:]] == [piece.end for piece in pieces[:-1]]
    assert len(header_of(pieces)) % 8 == 0


def test_checksum_covers_header_and_all_blocks(tmp_path: Path) -> None:
    payload = bytes(range(256)) * (BLOCK_BYTES // 128) + b"tail"
    entry = write_shard(tmp_path / "x", b"header", memoryview(payload))
    content = (tmp_path / "x").read_bytes()
    assert content == b"header" + payload
    assert entry == FileEntry(len(content), zlib.crc32(content))
    check_file(tmp_path / "x", entry)


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("mine")
    with pytest.raises(FileExistsError):
        write_shard(tmp_path / "x", b"", memoryview(b"y"))
    assert (tmp_path / "x").read_text() == "mine"


def test_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x"
    entry = write_shard(path, b"", memoryview(b"content"))
    corrupt(path)
    with pytest.raises(ValueError, match="x is damaged: CRC-32"):
        check_file(path, entry)
    path.write_bytes(b"cont")
    with pytest.raises(ValueError, match="x has 4 bytes instead of 7"):
        check_file(path, entry)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        check_file(path, entry)
