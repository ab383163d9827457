import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer.data.parquet import ParquetReader, row_groups, scalar_bytes
from trainer.data.scan import Scanner
from trainer.data.source import find_source
from trainer.errors import DataError


def write(path, texts, *, group=4, **columns):
    pq.write_table(pa.table({"text": texts, **columns}), path, row_group_size=group)
    return str(path)


def test_row_groups_are_found_from_the_footer(tmp_path):
    path = write(tmp_path / "a.parquet", ["a" * 100] * 10)
    groups = row_groups(path, "text")
    assert [(g.number, g.first_row, g.rows) for g in groups] == [(0, 0, 4), (1, 4, 4), (2, 8, 2)]
    assert all(g.field_bytes > 0 for g in groups)


@pytest.mark.parametrize("stretch", [(0, 10), (3, 5), (4, 8), (9, 10), (2, 2)])
def test_rows_are_read_across_row_groups(tmp_path, stretch):
    texts = [f"text {n}" for n in range(10)]
    path = write(tmp_path / "a.parquet", texts)
    rows = ParquetReader("text").rows(path, *stretch)
    assert [value.as_py() for value in rows] == texts[slice(*stretch)]


def test_nested_fields_are_read_whole(tmp_path):
    chats = [[{"role": "user", "content": str(n)}] for n in range(5)]
    path = write(tmp_path / "a.parquet", ["t"] * 5, messages=chats)
    assert row_groups(path, "messages")[0].field_bytes > 1
    assert [v.as_py() for v in ParquetReader("messages").rows(path, 0, 5)] == chats


@pytest.mark.parametrize("block_bytes", [1, 700, 10**6])
def test_every_row_is_in_one_block(tmp_path, block_bytes):
    write(tmp_path / "a.parquet", [f"{n}" * 50 for n in range(23)], group=7)
    write(tmp_path / "b.parquet", ["z" * 300] * 5, group=2)
    found = Scanner(find_source(str(tmp_path), "auto"), "text", block_bytes, 10**6).run()
    rows = [(int(s["file"]), r) for s in found.blocks.spans for r in range(s["start"], s["stop"])]
    assert rows == [(0, r) for r in range(23)] + [(1, r) for r in range(5)]
    assert all(s["first"] == s["start"] + 1 for s in found.blocks.spans)


def test_sizes_are_known_before_text_is_made():
    assert scalar_bytes(pa.scalar("äb")) == 3
    assert scalar_bytes(pa.scalar(None, pa.string())) == 0
    assert scalar_bytes(pa.scalar([1, 2])) == 0


def test_an_absent_column_is_named_with_those_there_are(tmp_path):
    path = write(tmp_path / "a.parquet", ["x"], label=[1])
    with pytest.raises(DataError, match=r"a\.parquet has no column 'body', only text, label;"):
        row_groups(path, "body")


def test_what_is_no_parquet_is_named(tmp_path):
    (tmp_path / "a.parquet").write_text("no parquet")
    with pytest.raises(DataError, match=r"a\.parquet is not a readable Parquet file"):
        row_groups(str(tmp_path / "a.parquet"), "text")
