import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer.data.documents import BadDocument, Document, DocumentReader
from trainer.data.index import open_index
from trainer.errors import DataError


def reader_of(config):
    index = open_index(config)
    return index, DocumentReader(index, max_document_bytes=config.max_document_bytes)


def read_all(config):
    index, reader = reader_of(config)
    documents = [d for block in range(index.blocks.count) for d in reader.read(block)]
    return [(reader.name_of(d.place).rpartition("/")[2], d) for d in documents]


def contents(config):
    return [d.content for _, d in read_all(config) if isinstance(d, Document)]


def complaints(config):
    return {name: d.reason for name, d in read_all(config) if isinstance(d, BadDocument)}


def test_text_files_are_documents_in_order(text_source, data_config):
    expected = [path.read_text() for path in sorted(text_source.iterdir())]
    assert contents(data_config(text_source)) == [text for text in expected if text]


def test_byte_order_marks_are_not_text(tmp_path, data_config):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    assert contents(data_config(tmp_path / "a.txt")) == ["hello"]


def test_binary_and_mangled_files_are_bad(tmp_path, data_config):
    folder = tmp_path / "d"
    folder.mkdir()
    (folder / "a.txt").write_bytes(b"ab\0c")
    (folder / "b.txt").write_bytes(b"ab\xffc")
    (folder / "c.txt").write_text("good")
    found = complaints(data_config(folder))
    assert found["a.txt"] == "is binary (it holds a zero byte)"
    assert found["b.txt"].startswith("is not UTF-8 (invalid start byte at byte 2")
    assert contents(data_config(folder)) == ["good"]


@pytest.mark.parametrize("block_bytes", [1, 40, 10**6])
def test_json_lines_are_read_with_their_line_numbers(tmp_path, data_config, block_bytes):
    path = tmp_path / "a.jsonl"
    good = [json.dumps({"text": f"line {n}"}) for n in range(4)]
    path.write_text(
        f'{good[0]}\r\n\n{{"text": \n  \n[1]\n{good[1]}\n'
        f'{{"body": 1, "id": 2}}\n{good[2]}\n{good[3]}'
    )
    config = data_config(path, block_bytes=block_bytes)
    names = [name for name, d in read_all(config) if isinstance(d, Document)]
    assert names == ["a.jsonl:1", "a.jsonl:6", "a.jsonl:8", "a.jsonl:9"]
    assert contents(config) == [f"line {n}" for n in range(4)]
    found = complaints(config)
    assert found["a.jsonl:3"].startswith("is not JSON (Expecting value")
    assert found["a.jsonl:5"] == "is a JSON list, not an object"
    assert found["a.jsonl:7"] == "has no field 'text' (fields: body, id)"


def test_deeply_nested_json_is_a_bad_line(tmp_path, data_config):
    path = tmp_path / "a.jsonl"
    path.write_text("[" * 200_000 + "\n")
    assert complaints(data_config(path))["a.jsonl:1"].startswith("is not JSON")


def test_parquet_rows_are_named_and_measured(tmp_path, data_config):
    table = pa.table(
        {"text": ["one", "x" * 90, None, "four"], "raw": [b"1", b"\xff", b"a\0", b"4"]}
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=3)
    config = data_config(tmp_path / "a.parquet", max_document_bytes=50)
    assert [(name, d.content) for name, d in read_all(config) if isinstance(d, Document)] == [
        ("a.parquet:row 1", "one"),
        ("a.parquet:row 3", None),
        ("a.parquet:row 4", "four"),
    ]
    assert complaints(config) == {
        "a.parquet:row 2": "has 90 bytes, over data.max_document_bytes=50"
    }
    raw = data_config(tmp_path / "a.parquet", text_field="raw")
    assert contents(raw) == ["1", "4"]
    assert len(complaints(raw)) == 2


def test_a_file_that_shrank_is_named(tmp_path, data_config):
    path = tmp_path / "a.txt"
    path.write_text("long enough")
    _, reader = reader_of(data_config(path))
    path.write_text("short")
    with pytest.raises(DataError, match=r"a\.txt changed while it was used; start the run again"):
        list(reader.read(0))
    path.unlink()
    with pytest.raises(DataError, match=r"a\.txt cannot be read: No such file"):
        list(reader.read(0))


def test_a_file_edited_in_place_is_not_read_under_its_old_fingerprint(tmp_path, data_config):
    lines, table = tmp_path / "a.jsonl", tmp_path / "b.parquet"
    lines.write_text('{"text": "old"}\n')
    pq.write_table(pa.table({"text": ["old"]}), table)
    for path in (lines, table):
        _, reader = reader_of(data_config(path))
        assert [document.content for document in reader.read(0)] == ["old"]
        path.write_bytes(path.read_bytes().replace(b"old", b"new"))
        os.utime(path, (1, 1))
        with pytest.raises(DataError, match=f"{path.name} changed while it was used"):
            list(reader.read(0))
