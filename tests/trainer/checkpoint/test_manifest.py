"""The manifest survives its own encoding, and no damage to it goes unseen."""

import zlib
from typing import Any

import pytest

from trainer.checkpoint.manifest import (
    Chunk,
    FileEntry,
    TensorEntry,
    decode,
    encode,
    encode_tensors,
)

TENSORS = {
    "model.w": TensorEntry("F32", (3, 2), (Chunk("a", (0, 0), (2, 2)), Chunk("b", (2, 0), (1, 2)))),
    "model.scale": TensorEntry("BF16", (), (Chunk("a", (), ()),)),
    "model.none": TensorEntry("F32", (0, 4), ()),
}
FILES = {"a": FileEntry(100, 17), "b": FileEntry(50, 2**32 - 1)}


def _text(meta_json: str = "{}") -> str:
    return encode(step=4, files=FILES, tensors_json=encode_tensors(TENSORS), meta_json=meta_json)


def test_reads_back_what_was_written() -> None:
    manifest = decode(_text('{"seed":3,"crc32":5,"text":"ä,\\"crc32\\":1"}'))
    meta: dict[str, Any] = {"seed": 3, "crc32": 5, "text": 'ä,"crc32":1'}
    assert (manifest.step, manifest.files, manifest.tensors) == (4, FILES, TENSORS)
    assert manifest.meta == meta


def test_any_changed_character_is_seen() -> None:
    text = _text().rstrip()
    for position in range(len(text)):
        changed = text[:position] + chr(ord(text[position]) ^ 1) + text[position + 1 :]
        with pytest.raises(ValueError, match=r"damaged|version"):
            decode(changed)


@pytest.mark.parametrize("length", [0, 1, 50, -3])
def test_a_cut_manifest_is_seen(length: int) -> None:
    with pytest.raises(ValueError, match="damaged"):
        decode(_text().rstrip()[:length])


def test_another_version_is_named() -> None:
    body = '{"version":99}'
    with pytest.raises(ValueError, match="version 99, this Braid reads 1"):
        decode(f'{body[:-1]},"crc32":{zlib.crc32(body.encode())}}}')
